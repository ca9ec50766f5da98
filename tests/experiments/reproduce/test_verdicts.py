"""Verdicts from intervals: every place where an interval may lie."""

from __future__ import annotations

import pytest

from cme_bench.experiments.reproduce.verdicts import (
    EQUIVALENT,
    FAILS,
    HOLDS,
    UNKNOWN,
    Interval,
    higher,
    same,
)


@pytest.mark.parametrize(
    ("low", "high", "is_higher", "is_same"),
    [
        (0.1, 1.2, HOLDS, UNKNOWN),
        (-1.2, -0.1, FAILS, UNKNOWN),
        (0.6, 1.2, HOLDS, FAILS),
        (-1.2, -0.6, FAILS, FAILS),
        (-0.2, 0.3, EQUIVALENT, HOLDS),
        (0.05, 0.3, HOLDS, HOLDS),
        (-0.3, -0.05, FAILS, HOLDS),
        (-0.6, 0.3, UNKNOWN, UNKNOWN),
        (-0.3, 0.6, UNKNOWN, UNKNOWN),
        (-2.0, 2.0, UNKNOWN, UNKNOWN),
        (0.0, 0.4, EQUIVALENT, HOLDS),
        (-0.5, 0.5, UNKNOWN, UNKNOWN),
    ],
)
def test_the_place_of_the_interval_decides(low: float, high: float, is_higher: str, is_same: str) -> None:
    found = Interval(low, high, low, high)
    assert (higher(found, 0.5), same(found, 0.5)) == (is_higher, is_same)


def test_equivalence_is_two_one_sided_tests() -> None:
    """The inner interval alone must lie within the margin, as in TOST at the same level."""
    found = Interval(-0.1, 0.55, -0.05, 0.49)
    assert higher(found, 0.5) == EQUIVALENT
    assert same(found, 0.5) == HOLDS
    assert higher(found, 0.4) == UNKNOWN


def test_a_difference_needs_the_outer_interval() -> None:
    """The inner one alone excludes 0 too often."""
    found = Interval(-0.05, 1.3, 0.1, 1.1)
    assert higher(found, 0.5) == higher(Interval(-1.3, 0.05, -1.1, -0.1), 0.5) == UNKNOWN
    assert same(Interval(0.4, 1.3, 0.6, 1.1), 0.5) == UNKNOWN
