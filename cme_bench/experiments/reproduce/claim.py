"""One claim of the paper and what was found of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Unit = Literal["points", "times", "share"]
"""Of the drawn number: a difference in percent points, a ratio of times, a difference of shares."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The numbers of a claim in the forest plot: ours with its interval, and the paper's if it gives one."""

    unit: Unit
    value: float
    low: float
    high: float
    paper: float | None = None


@dataclass(frozen=True, slots=True)
class PaperClaim:
    """One claim. ``claim`` and ``ours`` are in words, ``paper`` is the paper's report.

    verdict: one of :data:`~.verdicts.VERDICTS`. mde: smallest difference found with 80 % power, in points.
    family: of claims of scores, which share a level. decided_by: seeds of each row that would decide what
    cannot be told now, if the difference stays as it is; 0: no number of seeds would, more items are needed.
    numbers: everything behind it.
    """

    claim: str
    paper: str
    ours: str
    verdict: str
    mde: float | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    drawn: Drawn | None = None
    family: str = ""
    decided_by: int | None = None
