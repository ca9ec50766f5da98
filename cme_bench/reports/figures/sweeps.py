"""Figures 3a and 3b: the score over the number of experts, and over the amount of training data."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from cme_bench.reports.figures.inputs import FigureInputs, MissingInputError
from cme_bench.reports.figures.run_rows import runs_of
from cme_bench.reports.figures.style import MARKERS, OKABE_ITO


def experts_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Return figure 3a: one method and rank, several numbers of experts. LoRA of the rank of one expert is
    one expert of each of the methods: its router has nothing to choose."""
    frame = _varied(inputs, "experts", ["method", "rank"], "the number of experts")
    runs = runs_of(inputs)
    single = runs[runs["method"] == "lora"]
    for (method, rank), group in frame.groupby(["method", "rank"], sort=False):
        alone = single[single["rank"] == rank].assign(method=str(method), experts=1)
        if method != "lora" and 1 not in set(group["experts"]):
            frame = pd.concat([frame, alone])
    return frame.sort_values(["method", "rank", "experts"])


def scale_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Return figure 3b: one method, rank and number of experts, several amounts of training data."""
    return _varied(inputs, "tokens_trained", ["method", "rank", "experts"], "the tokens they were trained on")


def _varied(inputs: FigureInputs, by: str, same: list[str], what: str) -> pd.DataFrame:
    """Return runs of adapters that differ in ``by`` and agree in ``same``."""
    frame = runs_of(inputs).dropna(subset=[by, "rank"])
    kept = [group for _, group in frame.groupby(same, dropna=False) if group[by].nunique() > 1]
    if not kept:
        raise MissingInputError(f"no two runs of one method differ in {what}")
    return pd.concat(kept).sort_values([*same, by])


def draw_experts(frame: pd.DataFrame) -> Figure:
    """Score over the number of experts."""
    figure = _draw_lines(frame, "experts", ["method", "rank"], "experts")
    figure.axes[0].set_xticks(sorted(frame["experts"].unique()))
    return figure


def draw_scale(frame: pd.DataFrame) -> Figure:
    """Score over training tokens."""
    return _draw_lines(frame, "tokens_trained", ["method", "rank", "experts"], "tokens trained on")


def _draw_lines(frame: pd.DataFrame, x: str, same: list[str], label: str) -> Figure:
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (key, group) in enumerate(frame.groupby(same, dropna=False, sort=False)):
        method, rank, *_ = key
        axes.errorbar(
            group[x],
            group["score"],
            yerr=1.96 * group["stderr"],
            label=f"{method}, rank {rank:.0f}",
            color=OKABE_ITO[number % len(OKABE_ITO)],
            marker=MARKERS[number % len(MARKERS)],
            capsize=3,
        )
    axes.set_xlabel(label)
    axes.set_ylabel("macro average (%), 95 % interval")
    axes.legend(frameon=False)
    return figure
