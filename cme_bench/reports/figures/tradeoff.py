"""Figure 1: training time, inference time, score and parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cme_bench.reports.figures.inputs import FigureInputs, MissingInputError
from cme_bench.reports.figures.run_rows import records, runs_of
from cme_bench.reports.figures.style import OKABE_ITO


def tradeoff_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Return figure 1: adapters whose training time and inference time are known; without any, the methods
    of ``cme-bench efficiency``, which have no score."""
    measured = pd.DataFrame(_measured_tradeoff(inputs))
    if not inputs.runs and not measured.empty:
        return measured
    frame = runs_of(inputs).dropna(subset=["training_seconds", "inference_seconds", "parameters"])
    if frame.empty and not measured.empty:
        return measured
    if frame.empty:
        raise MissingInputError("no run has an adapter with a recorded training time")
    return frame


def _measured_tradeoff(inputs: FigureInputs) -> list[dict[str, Any]]:
    """Return methods whose training step and inference by transformers were measured on one model and
    machine."""
    benches = {(b["bench"], b.get("model"), b["hardware"]): b for b in inputs.benchmarks}
    rows = []
    for (kind, model, hardware), bench in benches.items():
        trained = benches.get(("train_step", model, hardware))
        if kind == "inference_hf" and trained is not None:
            rows += [
                {
                    "name": name,
                    "form": f"{model}, {hardware}",
                    "parameters": about["parameters"],
                    "training_seconds": trained["metrics"][f"{name}_ms"] / 1000,
                    "inference_seconds": bench["seconds"][name]["batch"],
                    "score": np.nan,
                    "source": f"efficiency, {hardware}",
                }
                for name, about in bench["methods"].items()
                if name in trained["methods"]
            ]
    return rows


def draw_tradeoff(frame: pd.DataFrame) -> Figure:
    """Draw training time against inference time; colour: score, where there is one; area: added
    parameters."""
    if frame["score"].isna().all():
        return _draw_measured(frame)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    area = 80 + 900 * frame["parameters"] / frame["parameters"].max()
    image = axes.scatter(
        frame["training_seconds"] / 60,
        1000 * frame["inference_seconds"],
        s=area,
        c=frame["score"],
        cmap="cividis",
        edgecolor="0.2",
        alpha=0.9,
    )
    _label_beside(axes, frame.sort_values("inference_seconds"))
    axes.margins(0.25)
    axes.set_xlabel("training time (min)")
    axes.set_ylabel("model time an item (ms)")
    axes.set_title("Training time, inference time and score; area: added parameters", fontsize=9)
    label = f"{frame['form'].iloc[0]}: macro average (%)"
    figure.colorbar(image, ax=axes, label=label, location="bottom", shrink=0.7)
    return figure


def _label_beside(axes: Axes, frame: pd.DataFrame) -> None:
    """Write names, scores and sizes in a column right of the axes, in the order of the points from below,
    each with a line to its point. Bubbles of similar methods lie on each other; their labels must not."""
    step = 1 / max(len(frame), 8)
    for number, row in enumerate(records(frame)):
        axes.annotate(
            f"{row['name']}\n{row['score']:.2f} %, {row['parameters'] / 1e6:.2f} M",
            (row["training_seconds"] / 60, 1000 * row["inference_seconds"]),
            xytext=(1.04, (number + 0.5) * step),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.7},
        )


def _draw_measured(frame: pd.DataFrame) -> Figure:
    """Return a training step against a full batch of inference."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(records(frame)):
        axes.scatter(
            1000 * row["training_seconds"],
            row["inference_seconds"],
            s=80 + 900 * row["parameters"] / frame["parameters"].max(),
            color=OKABE_ITO[number % len(OKABE_ITO)],
            edgecolor="0.2",
            alpha=0.9,
            label=f"{row['name']}, {row['parameters'] / 1e6:.2f} M",
        )
    axes.margins(0.25)
    axes.set_xlabel("training step (ms)")
    axes.set_ylabel("full batch of inference (s)")
    axes.set_title(f"{frame['form'].iloc[0]}, random weights; area: added parameters", fontsize=9)
    axes.legend(frameon=False, fontsize=7, markerscale=0.4)
    return figure
