"""Scales of metrics: their range, how a number is shown, and whether more is better.

Means over tasks are taken only over metrics of one bounded scale and direction. A metric that is unknown here
is shown as it is: not as a percentage, and never averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

Better = Literal["higher", "lower", "unknown"]


@dataclass(frozen=True, slots=True)
class Scale:
    """One range of values. ``factor``: a shown value is multiplied by it. ``digits``: the number behind the
    point; None for four significant ones. ``unit``: the unit of the shown number."""

    name: str
    low: float
    high: float
    unit: str = ""
    factor: float = 1
    digits: int | None = None

    @property
    def averaged(self) -> bool:
        """Whether values of several tasks have a mean that says something: bounded scales only."""
        return math.isfinite(self.high)

    def text(self, shown: float, *, signed: bool = False) -> str:
        """Return a number that is multiplied by ``factor`` already as text, without the unit."""
        plus = "+" if signed else ""
        return f"{shown:{plus}.4g}" if self.digits is None else f"{shown:{plus}.{self.digits}f}"

    def holds(self, value: float) -> bool:
        """Return whether ``value`` lies in the range, with room for rounding."""
        return self.low - 1e-9 <= value <= self.high + 1e-9


SHARE = Scale("share", 0, 1, "%", factor=100, digits=2)
POINTS = Scale("points", 0, 100, "points of 100", digits=2)
CORRELATION = Scale("correlation", -1, 1, digits=4)
BRIER = Scale("brier", 0, 2, digits=4)
PERPLEXITY = Scale("perplexity", 1, math.inf)
BITS = Scale("bits", 0, math.inf, "bits")
RAW = Scale("raw", -math.inf, math.inf)
SCALES = {s.name: s for s in (SHARE, POINTS, CORRELATION, BRIER, PERPLEXITY, BITS, RAW)}

SHARES = frozenset(
    """acc acc_stated acc_norm acc_char acc_bytes acc_byte acc_mutual_info acc_all exact_match em f1 f1_macro
    answered rouge_1 rouge_2 rouge_l accuracy precision recall""".split()
)
"""Metrics of single items between 0 and 1, more is better; a task's own code keeps to that, or it is raw."""

AGGREGATED: Mapping[str, tuple[Scale, Better]] = {
    "f1": (SHARE, "higher"),
    "f1_macro": (SHARE, "higher"),
    "matthews_corrcoef": (CORRELATION, "higher"),
    "bleu": (POINTS, "higher"),
    "chrf": (POINTS, "higher"),
    "chrf++": (POINTS, "higher"),
    "ter": (POINTS, "lower"),
    "brier_score": (BRIER, "lower"),
    "perplexity": (PERPLEXITY, "lower"),
    "weighted_perplexity": (PERPLEXITY, "lower"),
    "bits_per_byte": (BITS, "lower"),
}
"""lm-eval's aggregations that are a formula of their own: the formula decides, whatever a file says."""
ITEM_SCALES: dict[str, tuple[Scale, Better]] = {}
"""Scale and direction of the metrics that are registered in :mod:`cme_bench.scoring.item_metrics`."""
KEEPING = ("mean", "median", "nanmean")
"""Aggregations whose result lies where the items' values lie."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric of a task. ``aggregation``: lm-eval's name of it, or ``!function NAME``."""

    scale: Scale = SHARE
    better: Better = "higher"
    aggregation: str = "mean"

    @property
    def kind(self) -> str:
        """Scale and direction in words, equal for what may stand in one column; empty for a usual share."""
        if (self.scale, self.better) == (SHARE, "higher"):
            return ""
        direction = "direction unknown" if self.better == "unknown" else f"{self.better} is better"
        return f"{self.scale.name}, {direction}"

    @property
    def unit(self) -> str:
        """The unit of the shown numbers, for captions."""
        return f"in {self.scale.unit}" if self.scale.unit else f"({self.scale.name})"

    @property
    def sign(self) -> int:
        """1 if more is better, -1 if less is, 0 if that is unknown."""
        return {"higher": 1, "lower": -1, "unknown": 0}[self.better]

    def shown(self, value: float, *, signed: bool = False) -> str:
        """Return ``value`` as text in the scale's unit, without the unit."""
        return self.scale.text(self.scale.factor * value, signed=signed)


USUAL = Measure()
"""A mean of shares, more is better."""


def measure_from(scale: str | None, better: str | None, aggregation: str | None) -> Measure:
    """Return the measure that results.json names; a mean of shares where an older run says nothing."""
    better = better or "higher"
    return Measure(
        SCALES.get(scale or "share", RAW),
        cast(Better, better) if better in ("higher", "lower") else "unknown",
        aggregation or "mean",
    )


def measure_of(
    metric: str,
    aggregation: str,
    *,
    higher: bool | None = None,
    declared: str | None = None,
    values: Iterable[float] = (),
) -> Measure:
    """Return the scale and direction of ``metric`` under ``aggregation``, by lm-eval's names.

    ``higher``: the task's ``higher_is_better``. ``declared``: the scale that the task's metadata names.
    ``values``: the result and the items' numbers; a share that leaves its range is raw.
    """
    if declared is not None:
        return Measure(SCALES[declared], _direction(metric, higher), aggregation)
    if aggregation in AGGREGATED:
        scale, better = AGGREGATED[aggregation]
        return Measure(scale, better, aggregation)
    scale, better = ITEM_SCALES.get(metric, (SHARE, "higher"))
    if scale is not SHARE and aggregation in KEEPING:
        return Measure(scale, better, aggregation)
    known = metric in SHARES or metric in ITEM_SCALES
    named = known and (aggregation in KEEPING or aggregation.startswith("!function"))
    if named and all(SHARE.holds(value) for value in values if not math.isnan(value)):
        return Measure(SHARE, _direction(metric, higher), aggregation)
    return Measure(RAW, _direction(metric, higher), aggregation)


def _direction(metric: str, higher: bool | None) -> Better:
    if higher is None:
        return ITEM_SCALES.get(metric, (SHARE, "higher" if metric in SHARES else "unknown"))[1]
    return "higher" if higher else "lower"
