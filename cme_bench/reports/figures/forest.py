"""A forest plot: every claim as an interval beside the paper's number."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cme_bench.reports.figures.style import MARKERS, OKABE_ITO

FOREST = "forest"
_TITLES = {
    "points": "difference of the averages B - A, percent points",
    "times": "time of B / time of A",
    "share": "difference of shares B - A",
}
_NOTHING = {"points": 0.0, "times": 1.0, "share": 0.0}
_COLOURS = (OKABE_ITO[2], OKABE_ITO[5], OKABE_ITO[0], "0.45")
_WIDTH = 66
"""Characters of a line of a claim's text."""


def draw_forest(frame: pd.DataFrame, verdicts: Sequence[str], said: str = "") -> Figure:
    """Draw a panel for each unit, a line for each claim: our value and interval in the colour of the verdict,
    the paper's number as a hollow diamond, the margin of equivalence shaded."""
    panels = [(unit, frame[frame["unit"] == unit]) for unit in _TITLES if (frame["unit"] == unit).any()]
    heights = [max(len(group), 2) for _, group in panels]
    size = (11, 1.6 + 0.34 * sum(heights) + 0.6 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights).ravel()
    styles = {v: (_COLOURS[n % 4], MARKERS[n % len(MARKERS)]) for n, v in enumerate(verdicts)}
    for one, (unit, group) in zip(axes, panels, strict=True):
        _draw_panel(one, unit, group, styles)
    handles = [
        Line2D([], [], color=colour, marker=marker, label=verdict)
        for verdict, (colour, marker) in styles.items()
    ]
    handles.append(_diamond([], []))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8)
    if said:
        figure.supxlabel(said, fontsize=7, x=0.01, ha="left")
    return figure


def _diamond(x: list[float], y: list[float]) -> Line2D:
    """Return the mark of the paper's number."""
    return Line2D(
        x,
        y,
        linestyle="",
        marker="D",
        color="black",
        markerfacecolor="none",
        markersize=6,
        label="the paper's number",
    )


def _draw_panel(axes: Axes, unit: str, group: pd.DataFrame, styles: dict[str, tuple[str, str]]) -> None:
    nothing, margin = _NOTHING[unit], group["margin"].iloc[0]
    if pd.notna(margin):
        axes.axvspan(nothing - margin, nothing + margin, color="0.92", zorder=0)
    axes.axvline(nothing, color="0.25", linewidth=0.8, linestyle=":")
    for place, row in enumerate(group.to_dict("records")):
        colour, marker = styles[row["verdict"]]
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.8)
        axes.plot([row["value"]], [place], color=colour, marker=marker, markersize=5)
        if pd.notna(row["paper"]):
            axes.add_line(_diamond([row["paper"]], [place]))
    labels = [textwrap.fill(text, _WIDTH) for text in group["claim"]]
    axes.set_yticks(range(len(group)), labels, fontsize=6.5)
    axes.set_ylim(len(group) - 0.5, -0.5)
    axes.margins(x=0.05)
    axes.set_xlabel(_TITLES[unit], fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
