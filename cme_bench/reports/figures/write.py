"""Figures from runs, benchmark results and training logs, each with its numbers as csv beside it.

A figure is a frame of numbers and a drawing of it: nothing is drawn that the frame does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from cme_bench.reports.figures.domains import domains_frame, draw_domains
from cme_bench.reports.figures.inputs import FigureInputs, MissingInputError
from cme_bench.reports.figures.latency import draw_latency, latency_frame
from cme_bench.reports.figures.loss import curve_frame, draw_curves
from cme_bench.reports.figures.router import draw_router, router_frame
from cme_bench.reports.figures.style import DPI
from cme_bench.reports.figures.sweeps import draw_experts, draw_scale, experts_frame, scale_frame
from cme_bench.reports.figures.tradeoff import draw_tradeoff, tradeoff_frame
from cme_bench.reports.runs import check_alike, labels, provenance_notes, watermarks
from cme_bench.util.csv_text import frame_csv
from cme_bench.util.files import write_text

_PDF = {"CreationDate": None, "ModDate": None}  # the same numbers give the same file


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """``frame`` raises MissingInputError; ``draw`` gets its frame."""

    name: str
    frame: Callable[[FigureInputs], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]


FIGURES = (
    FigureSpec("figure1_tradeoff", tradeoff_frame, draw_tradeoff),
    FigureSpec("figure3a_experts", experts_frame, draw_experts),
    FigureSpec("figure3b_data_scale", scale_frame, draw_scale),
    FigureSpec("figure4a_latency", latency_frame, draw_latency),
    FigureSpec("figure4b_loss", curve_frame, draw_curves),
    FigureSpec("figure5b_router", router_frame, draw_router),
    FigureSpec("domains", domains_frame, draw_domains),
)


def write_figures(
    inputs: FigureInputs, out: Path, *, allow_mixed: bool = False, names: Collection[str] | None = None
) -> Iterator[str]:
    """Write NAME.png, NAME.pdf and NAME.csv of every figure that has its inputs, and SOURCES.md, which says
    where the numbers come from. Yield a line for each figure. ``names``: only these figures.

    UsageError if the runs differ, unless ``allow_mixed``.
    """
    if inputs.runs:
        mixed = check_alike(inputs.runs, allow_mixed=allow_mixed)
        notes = [*watermarks(inputs.runs), *(f"MIXED: {difference}" for difference in mixed)]
    else:
        notes = []
    for spec in (spec for spec in FIGURES if names is None or spec.name in names):
        try:
            frame = spec.frame(inputs)
        except MissingInputError as missing:
            yield f"{spec.name}: skipped, {missing}"
            continue
        figure = spec.draw(frame)
        if notes and _shows_runs(frame):
            figure.supxlabel("\n".join(notes), fontsize=7, x=0.01, ha="left")
        save_figure(figure, frame, out / spec.name)
        yield f"{spec.name}: png, pdf, csv"
    write_text(out / "SOURCES.md", "".join(f"- {line}\n" for line in [*notes, *_sources(inputs)]))


def save_figure(figure: Figure, frame: pd.DataFrame, stem: Path) -> None:
    """Write a figure as ``stem``.png and .pdf, and its numbers as .csv; the same numbers give the same
    files."""
    figure.savefig(stem.with_suffix(".png"), dpi=DPI)
    figure.savefig(stem.with_suffix(".pdf"), metadata=_PDF)
    write_text(stem.with_suffix(".csv"), frame_csv(frame))


def _sources(inputs: FigureInputs) -> Iterator[str]:
    """Yield model, task hashes, versions and commit of every run; file, machine and commit of every
    benchmark."""
    yield from provenance_notes(inputs.runs, labels(inputs.runs))
    for bench in inputs.benchmarks:
        yield f"{bench['file']}: {bench['bench']}, {bench['hardware']}, commit {bench['commit']}"
    for curve in inputs.curves:
        yield f"loss curve of {curve['name'].iloc[0]} ({curve['method'].iloc[0]}), {len(curve)} steps"


def _shows_runs(frame: pd.DataFrame) -> bool:
    """Return whether numbers of runs are in the frame, so that their notes belong under the figure."""
    return "score" in frame or "runs" in set(frame.get("source", []))
