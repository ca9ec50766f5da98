"""The cells of a comparison table, and the table that they make up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from cme_bench.reports.significance import Significance
from cme_bench.runs.records import EstimateRecord
from cme_bench.scoring.scales import USUAL, Measure

CME_FORMS = ("generated", "likelihood")
MULTIMODAL = "multimodal"
"""The domain of the stand-in for the paper's row on images."""
FIXED = ("model", "method", "MoE", "rank", "training", "params %")
"""Columns before the scores. ``params %``: parameters that the adapter adds, in percent of the base's."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry. ``value`` and ``stderr`` are in the unit of the table (percent for shares); ``text`` stands
    where there is no number.

    ``dagger``: not significantly different from the column's best.
    """

    text: str = "–"
    value: float | None = None
    stderr: float | None = None
    n: int | None = None
    best: bool = False
    second: bool = False
    dagger: bool = False


@dataclass(frozen=True, slots=True)
class ComparisonTable:
    """``columns`` name the cells of each row, the first ``len(FIXED)`` of them identify it; below ours stand
    the ``references`` (chance, majority, runs without their images) and the ``published`` rows; ``notes``
    stand under the table; ``tested``: what the daggers were found by; ``measure``: the scale and direction of
    all its scores."""

    form: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    published: tuple[tuple[Cell, ...], ...] = field(default=())
    references: tuple[tuple[Cell, ...], ...] = field(default=())
    notes: tuple[str, ...] = field(default=())
    tested: Significance | None = None
    measure: Measure = USUAL


def method_cells(
    *,
    experts: int | None,
    rank: int | None,
    seconds: float | None,
    percent: float | None,
    language: float | None = None,
) -> Iterator[Cell]:
    yield Cell("yes" if (experts or 1) > 1 else "no")
    yield Cell(str(rank)) if rank else Cell()
    yield Cell(duration(seconds)) if seconds else Cell()
    inside = f" ({language:.2f} of the language model)" if language else ""
    yield Cell(f"{percent:.2f}{inside}" if percent else "0")


def duration(seconds: float) -> str:
    """Return a time in the largest unit that leaves 1 or more: hours, minutes or seconds."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def score_cell(estimate: EstimateRecord | None, factor: float) -> Cell:
    if estimate is None or estimate.value is None:
        return Cell()
    stderr = None if estimate.stderr is None else factor * estimate.stderr
    return Cell(value=factor * estimate.value, stderr=stderr, n=estimate.n)
