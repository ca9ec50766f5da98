"""Equal rows are planned once, and asked by equal packs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cme_bench.engines import kept_plans
from cme_bench.engines.kept_plans import KeptPlans
from cme_bench.engines.packs import Pack
from cme_bench.engines.plan import PlanLimits, plan_packs

LIMITS = PlanLimits(pack_tokens=40, pack_scored=40, block_tokens=16, forward_tokens=4, kept_tokens=100)
ROWS = [((1, 2, 3, 10 + i // 3, 4, 5), (20 + i, 7)) for i in range(30)]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were planned, at every call."""
    calls: list[int] = []

    def counted(rows: kept_plans.Rows, limits: PlanLimits) -> object:
        calls.append(len(rows))
        return plan_packs(rows, limits)

    monkeypatch.setattr(kept_plans, "plan_packs", counted)
    return calls


def same(one: list[Pack], other: list[Pack]) -> bool:
    parts = [(a.tokens, b.tokens) for a, b in zip(one, other, strict=True)]
    reads = [pair for a, b in zip(one, other, strict=True) for pair in zip(a.reads, b.reads, strict=True)]
    return all(np.array_equal(mine, theirs) for mine, theirs in parts + reads)


def test_the_next_engine_gets_the_packs_of_the_one_before(planned: list[int]) -> None:
    plans = KeptPlans()
    first = list(plans.packs(ROWS, replace(LIMITS)))
    again = list(plans.packs([*ROWS], replace(LIMITS)))
    assert len(first) > 2 and same(first, again) and same(first, list(plan_packs(ROWS, LIMITS)))
    assert planned == [30]
    fewer = list(plans.packs(ROWS[:20], LIMITS))
    smaller = list(plans.packs(ROWS, replace(LIMITS, pack_tokens=20)))
    assert planned == [30, 20, 30]
    assert same(fewer, list(plan_packs(ROWS[:20], LIMITS)))
    assert same(smaller, list(plan_packs(ROWS, replace(LIMITS, pack_tokens=20))))


def test_a_plan_that_was_not_taken_whole_or_under_shrunk_limits_is_made_anew(planned: list[int]) -> None:
    plans = KeptPlans()
    next(plans.packs(ROWS, LIMITS))
    limits = replace(LIMITS)
    for _ in plans.packs(ROWS, limits):
        limits.pack_tokens = 20
    list(plans.packs(ROWS, LIMITS))
    assert planned == [30, 30, 30]


def test_what_is_kept_has_a_bound(planned: list[int]) -> None:
    tokens = sum(pack.n_tokens for pack in plan_packs(ROWS, LIMITS))
    plans = KeptPlans(tokens)
    for rows in (ROWS, ROWS[:20], ROWS, ROWS[:20]):
        assert same(list(plans.packs(rows, LIMITS)), list(plan_packs(rows, LIMITS)))
    assert planned == [30, 20, 20]
