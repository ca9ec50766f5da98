"""The verdict on a claim, from intervals alone; the same rules for every scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HOLDS, FAILS, EQUIVALENT, UNKNOWN = "holds", "does not hold", "equivalent within the margin", "cannot tell"
VERDICTS = (HOLDS, FAILS, EQUIVALENT, UNKNOWN)


@dataclass(frozen=True, slots=True)
class Interval:
    """Of a difference: ``low`` to ``high`` has the level 1 - a, ``inner_low`` to ``inner_high`` 1 - 2a.

    The inner one is that of two one-sided tests at level a each (TOST; Schuirmann 1987).
    """

    low: float
    high: float
    inner_low: float
    inner_high: float

    def within(self, margin: float) -> bool:
        """Return whether the inner interval lies between -margin and +margin."""
        return -margin < self.inner_low and self.inner_high < margin


def higher(found: Interval, margin: float) -> str:
    """Return the verdict on "B scores higher than A". ``found``: of B - A.

    A difference that is told from 0 goes before equivalence, even if it is small.
    """
    if found.low > 0:
        return HOLDS
    if found.high < 0:
        return FAILS
    return EQUIVALENT if found.within(margin) else UNKNOWN


def same(found: Interval, margin: float) -> str:
    """Return the verdict on "B scores as A, within the margin": it fails where the interval of B - A lies
    wholly beyond the margin."""
    if found.within(margin):
        return HOLDS
    return FAILS if found.low > margin or found.high < -margin else UNKNOWN


def faster(ratios: Sequence[float], margin: float) -> str:
    """Return the verdict on "B takes less time than A" from the ratio B / A of every round: all below 1, all
    above 1, or all within ``margin`` of 1."""
    if max(ratios) < 1:
        return HOLDS
    if min(ratios) > 1:
        return FAILS
    return EQUIVALENT if all(abs(ratio - 1) <= margin for ratio in ratios) else UNKNOWN
