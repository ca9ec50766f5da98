"""Figure 4b: the loss curves of trainings."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from cme_bench.reports.figures.inputs import FigureInputs, MissingInputError
from cme_bench.reports.figures.style import OKABE_ITO


def curve_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Return figure 4b: the loss curves of all trainings."""
    if not inputs.curves:
        raise MissingInputError("no training folder with a loss.csv is given or named by a run")
    return pd.concat(inputs.curves, ignore_index=True)


def draw_curves(frame: pd.DataFrame) -> Figure:
    """Draw loss over steps: single steps faint, a running mean over a fiftieth of the training strong."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, group) in enumerate(frame.groupby("name", sort=False)):
        color = OKABE_ITO[number % len(OKABE_ITO)]
        window = max(1, len(group) // 50)
        axes.plot(group["step"], group["loss"], color=color, alpha=0.25, linewidth=0.6)
        axes.plot(
            group["step"],
            group["loss"].rolling(window, min_periods=1).mean(),
            color=color,
            linestyle=("-", "--", "-.", ":")[number // len(OKABE_ITO) % 4],
            label=str(name),
        )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss of target tokens (nats)")
    axes.legend(frameon=False, fontsize=8)
    return figure
