"""Figure 4a: training and inference time relative to LoRA."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cme_bench.reports.figures.inputs import FigureInputs, MissingInputError
from cme_bench.reports.figures.run_rows import records, runs_of
from cme_bench.reports.figures.style import OKABE_ITO

ENGINE_NAMES = {"inference_hf": "transformers", "inference_vllm": "vLLM"}
"""Benchmarks of inference, and the engine that each measures."""


def latency_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Return figure 4a: times relative to LoRA's. Training steps and inference are from ``cme-bench
    efficiency``, or inference from runs. Each source is compared with its own LoRA of the lowest rank."""
    rows: list[dict[str, Any]] = []
    for bench in (b for b in inputs.benchmarks if b["bench"] == "train_step"):
        times = {k.removesuffix("_ms"): v for k, v in bench["metrics"].items() if k.endswith("_ms")}
        if "lora32" in times:
            of = f", {bench['model']}" if "model" in bench else ""
            source = f"train_step{of}, {bench['hardware']}"
            rows += [
                _relative("training step", name, ms / 1000, times["lora32"] / 1000, source)
                for name, ms in times.items()
            ]
    for bench in (b for b in inputs.benchmarks if b["bench"] in ENGINE_NAMES and "lora32" in b["seconds"]):
        for workload, base in bench["seconds"]["lora32"].items():
            source = f"{ENGINE_NAMES[bench['bench']]}, {bench['model']}, {bench['hardware']}"
            rows += [
                _relative(f"{workload} inference", name, seconds[workload], base, source)
                for name, seconds in bench["seconds"].items()
            ]
    if inputs.runs:
        runs = runs_of(inputs).dropna(subset=["inference_seconds", "rank"])
        lora = runs[runs["method"] == "lora"].sort_values("rank")
        if len(lora) and len(runs) > 1:
            base = float(lora["inference_seconds"].iloc[0])
            rows += [
                _relative("inference", row["name"], row["inference_seconds"], base, "runs")
                for row in records(runs)
            ]
    if not rows:
        raise MissingInputError("no train_step benchmark, and no runs of LoRA and another adapter")
    return pd.DataFrame(rows)


def _relative(kind: str, name: str, seconds: float, base: float, source: str) -> dict[str, Any]:
    return {"kind": kind, "name": name, "seconds": seconds, "relative": seconds / base, "source": source}


def draw_latency(frame: pd.DataFrame) -> Figure:
    """Return a bar for each method, a panel for each source, two columns of many; the line at 1 is LoRA."""
    groups = list(frame.groupby(["kind", "source"], sort=False))
    columns = 1 if len(groups) <= 3 else 2
    lines = [groups[start : start + columns] for start in range(0, len(groups), columns)]
    heights = [max(len(group) for _, group in line) for line in lines]
    size = (7 if columns == 1 else 11, 1.2 + 0.5 * len(lines) + 0.22 * sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights).ravel()
    colors = itertools.cycle(OKABE_ITO)
    for axes, (key, group), color in zip(panels, groups, colors, strict=False):
        kind, source = key
        axes.barh(range(len(group)), group["relative"], color=color)
        for place, value in enumerate(group["relative"]):
            axes.text(value, place, f" {value:.2f}", va="center", fontsize=7)
        axes.set_yticks(range(len(group)), list(group["name"]), fontsize=8)
        axes.invert_yaxis()
        axes.axvline(1, color="0.25", linewidth=0.8, linestyle=":")
        axes.margins(x=0.1)
        axes.set_title(f"{kind} time relative to LoRA of the lowest rank\n{source}", fontsize=8)
    for axes in panels[len(groups) :]:
        axes.remove()
    return figure
