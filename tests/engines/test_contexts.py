"""Equal contexts are one, whichever objects they are, and each object is hashed once."""

from __future__ import annotations

from dataclasses import replace

from cme_bench.engines.contexts import Contexts
from cme_bench.engines.hf.loglikelihood import plan_rows
from cme_bench.engines.kept_plans import KeptPlans
from cme_bench.engines.plan import PlanLimits, plan_packs
from cme_bench.engines.requests import LoglikelihoodRequest, TokenIds

LIMITS = PlanLimits(pack_tokens=40, pack_scored=40, block_tokens=16, forward_tokens=4, kept_tokens=100)


def made(*ids: int) -> TokenIds:
    """Return a tuple that is no other's object."""
    return tuple(iter(ids))


def asked() -> list[LoglikelihoodRequest]:
    shared = made(5, 6, 7)
    return [
        LoglikelihoodRequest(((shared, (1, 2)), (shared, (3,)), (shared, ()))),
        LoglikelihoodRequest(((made(5, 6, 7), (3,)), (made(5, 6), (7, 3)))),  # another object, and a cloze
        LoglikelihoodRequest(((made(5, 6, 8), (3,)), (made(5, 6, 8), (3,)))),
    ]


def test_equal_contexts_have_one_number() -> None:
    one, equal, other = made(1, 2), made(1, 2), made(2, 1)
    contexts = Contexts()
    assert [contexts.number(ids) for ids in (one, other, equal, one, other)] == [0, 1, 0, 0, 1]
    assert contexts.distinct == ((1, 2), (2, 1))


def test_rows_are_those_that_differ_by_their_tokens() -> None:
    requests = asked()
    owners: dict[tuple[TokenIds, TokenIds], set[tuple[int, int]]] = {}
    for index, request in enumerate(requests):
        for choice, row in enumerate(request.rows):
            if row[1]:
                owners.setdefault(row, set()).add((index, choice))
    planned = plan_rows(requests)
    assert {(row.context, row.continuation): set(row.owners) for row in planned} == owners
    assert len(planned) == len(owners) == 4


def test_a_plan_is_known_again_by_its_tokens_alone() -> None:
    rows = [(made(1, 2, 3), (4, 5)), (made(1, 2, 3), (5,)), (made(1, 2), (3, 4, 5))]
    alike = [(made(1, 2, 3), made(4, 5)), (made(1, 2, 3), made(5)), (made(1, 2), made(3, 4, 5))]
    others = [
        [rows[1], rows[0], rows[2]],
        [rows[0], rows[1], (rows[0][0], (3, 4, 5))],
        [rows[0], rows[1], (made(1, 2, 3, 4), (5,))],
    ]
    plans = KeptPlans()
    first = list(plans.packs(rows, replace(LIMITS)))
    again = list(plans.packs(alike, replace(LIMITS)))
    assert [id(pack) for pack in again] == [id(pack) for pack in first]
    for other in others:
        found = list(plans.packs(other, LIMITS))
        assert [p.tokens.tolist() for p in found] == [p.tokens.tolist() for p in plan_packs(other, LIMITS)]
        assert [p.reads[3].tolist() for p in found] == [
            p.reads[3].tolist() for p in plan_packs(other, LIMITS)
        ]
