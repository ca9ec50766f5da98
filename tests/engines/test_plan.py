"""Every row is scored once, every token sees exactly its own row, and sharing is bounded and complete."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings

from cme_bench.engines import LoglikelihoodRequest, TokenIds
from cme_bench.engines.packs import Pack, PackSequence
from cme_bench.engines.plan import PlanLimits, pack_sequences, plan_packs
from tests.support.tries import limits, requests

Row = tuple[TokenIds, TokenIds]
ROOMY = PlanLimits(1000, 1000, 20, 4, 1000)


def distinct_rows(asked: list[LoglikelihoodRequest]) -> list[Row]:
    return list(dict.fromkeys(row for request in asked for row in request.rows))


def tokens_seen(pack: Pack, path: list[int], place: int) -> list[int]:
    """Ids that the token at ``place`` of ``pack`` sees, itself included, first to last."""
    start = int(pack.starts[np.searchsorted(pack.starts, place, side="right") - 1])
    unit = pack.units[int(np.searchsorted(pack.starts, place, side="right")) - 1]
    i = place - start
    seen = [j for j in range(i + 1) if i < unit.end[j]]
    assert [int(unit.positions[j]) for j in seen] == list(range(pack.cached, pack.cached + len(seen)))
    return path[: pack.cached] + [int(unit.tokens[j]) for j in seen]


def follow(rows: list[Row], plan: PlanLimits) -> tuple[list[Pack], int]:
    """The packs, and the longest path kept. Checks every read of every row."""
    path: list[int] = []
    read: dict[int, list[tuple[int, int]]] = {i: [] for i in range(len(rows))}
    packs = list(plan_packs(rows, plan))
    longest = 0
    for pack in packs:
        assert pack.cached <= len(path)
        places, index, target, owner = pack.reads
        for i, token, row in zip(index, target, owner, strict=True):
            context, continuation = rows[row]
            seen = tokens_seen(pack, path, int(places[i]))
            assert tuple(seen) == (context + continuation)[: len(seen)]
            assert continuation[len(seen) - len(context)] == token
            read[int(row)].append((len(seen) - len(context), int(token)))
        if pack.keep:
            path = path[: pack.cached] + pack.tokens.tolist()
            longest = max(longest, len(path))
    for i, (_, continuation) in enumerate(rows):
        assert sorted(read[i]) == list(enumerate(continuation))
    return packs, longest


@settings(max_examples=150, deadline=None)
@given(requests(), limits)
def test_any_trie_under_any_limits(asked: list[LoglikelihoodRequest], plan: PlanLimits) -> None:
    rows = distinct_rows(asked)
    packs, longest = follow(rows, plan)
    assert longest <= plan.kept_tokens
    for pack in packs:
        assert pack.n_tokens <= plan.pack_tokens or len(pack.units) == 1
    assert sum(pack.n_tokens for pack in packs) <= sum(len(c) + len(t) - 1 for c, t in rows)


@settings(max_examples=50, deadline=None)
@given(requests())
def test_no_token_twice_when_sharing_is_free(asked: list[LoglikelihoodRequest]) -> None:
    rows = distinct_rows(asked)
    packs, _ = follow(rows, PlanLimits(1000, 1000, 0, 0, 1000))
    prefixes = {(c + t)[: i + 1] for c, t in rows for i in range(len(c) + len(t) - 1)}
    assert sum(pack.n_tokens for pack in packs) == len(prefixes)


@settings(max_examples=50, deadline=None)
@given(requests(), limits)
def test_split_packs_read_the_same(asked: list[LoglikelihoodRequest], plan: PlanLimits) -> None:
    for pack in plan_packs(distinct_rows(asked), plan):
        halves = pack.split()
        if halves is None:
            assert len(pack.units) == 1
            continue
        whole = [pack.reads[k].tolist() for k in (2, 3)]
        parts = [[v for half in halves for v in half.reads[k].tolist()] for k in (2, 3)]
        assert sorted(zip(*parts, strict=True)) == sorted(zip(*whole, strict=True))
        assert sum(half.n_tokens for half in halves) == pack.n_tokens
        assert halves[1].cached == pack.cached + (halves[0].n_tokens if pack.keep else 0)


@settings(max_examples=50, deadline=None)
@given(requests(), limits)
def test_sequences_read_what_their_packs_do(asked: list[LoglikelihoodRequest], plan: PlanLimits) -> None:
    rows = distinct_rows(asked)
    packs = list(plan_packs(rows, plan))
    whole = list(pack_sequences(packs, plan))
    assert [id(pack) for sequence in whole for pack in sequence.packs] == [id(pack) for pack in packs]
    for sequence in whole:
        scored = len(sequence.reads[0])
        assert len(sequence.packs) == 1 or (
            sequence.n_tokens <= plan.pack_tokens and scored <= plan.pack_scored
        )
    for one, other in itertools.pairwise(whole):  # no two would have fitted
        first = PackSequence((*one.packs, other.packs[0]))
        assert first.n_tokens > plan.pack_tokens or len(first.reads[0]) > plan.pack_scored


@settings(max_examples=50, deadline=None)
@given(requests(), limits)
def test_a_sequence_reads_at_the_places_of_its_packs(
    asked: list[LoglikelihoodRequest], plan: PlanLimits
) -> None:
    todo = [PackSequence(tuple(plan_packs(distinct_rows(asked), plan)))]
    while todo:
        sequence = todo.pop()
        assert sequence.reads[0].tolist() == sorted(set(sequence.reads[0].tolist()))
        found = reads_of(sequence)
        assert found == [read for pack in sequence.packs for read in reads_of(pack)]
        if halves := sequence.split():
            assert sorted(read for half in halves for read in reads_of(half)) == sorted(found)
            todo += halves


def reads_of(pack: Pack | PackSequence) -> list[tuple[int, int, int, int]]:
    """The id and the position at the place of every read, what is read there and for which row."""
    places, index, target, row = pack.reads
    at = places[index]
    parts = (pack.tokens[at], pack.positions[at], target, row)
    return list(zip(*(part.tolist() for part in parts), strict=True))


def test_a_header_is_computed_once_and_questions_travel_together() -> None:
    header, choices = tuple(range(100, 200)), [(1,), (2, 3), (2, 4, 5)]
    rows = [((*header, 300 + q, 7, 8), choice) for q in range(10) for choice in choices]
    first, second = follow(rows, ROOMY)[0]
    assert (first.cached, first.keep, first.n_tokens) == (0, True, 100)
    assert (second.cached, second.keep, len(second.units)) == (100, False, 10)
    assert second.n_tokens == 10 * (3 + 1 + 1)  # the last token of a choice is not fed; 2 is shared


def test_headers_within_headers_are_kept_depth_first() -> None:
    task, subjects = tuple(range(50)), [tuple(range(100 * s, 100 * s + 30)) for s in range(1, 4)]
    rows = [(task + s + tuple(range(q, q + 9)), (1,)) for s in subjects for q in range(1000, 1500, 10)]
    packs, longest = follow(rows, ROOMY)
    assert longest == 50 + 30
    assert sum(pack.n_tokens for pack in packs) == 50 + 3 * 30 + 3 * 50 * 9
    assert [pack.n_tokens for pack in packs if pack.keep] == [50, 30, 30, 30]


def test_blocks_of_very_different_sizes_do_not_travel_together() -> None:
    """Side by side as rows of the longest's length, blocks take up twice a pack at most."""
    rows = [(tuple(range(100 * q, 100 * q + n)), (5,)) for q, n in enumerate([90, *[5] * 60])]
    packs, _ = follow(rows, PlanLimits(400, 400, 100, 1000, 1000))
    assert len(packs) > 1
    for pack in packs:
        sizes = [len(unit.tokens) for unit in pack.units]
        assert max(sizes) * len(sizes) <= 2 * 400


def test_a_long_header_comes_in_chunks() -> None:
    header = tuple(range(2000))
    rows = [((*header, 3000 + q), (5,)) for q in range(400)]
    packs, longest = follow(rows, PlanLimits(256, 256, 64, 16, 4000))
    assert [pack.n_tokens for pack in packs if pack.keep] == [256] * 7 + [208]
    assert longest == 2000
    assert max(pack.n_tokens for pack in packs) <= 256


def test_a_prefix_too_long_to_keep_is_computed_again() -> None:
    header = tuple(range(100))
    rows = [((*header, 300 + q), (5,)) for q in range(20)]
    packs, longest = follow(rows, PlanLimits(250, 250, 10, 4, 60))
    assert longest <= 60
    assert sum(pack.n_tokens for pack in packs) == 20 * 101


@pytest.mark.parametrize("seed", range(3))
def test_the_plan_does_not_depend_on_the_order_of_rows(seed: int) -> None:
    source = random.Random(seed)
    header = tuple(source.randrange(9) for _ in range(30))
    rows = distinct_rows(
        [
            LoglikelihoodRequest(
                tuple(((*header, q, q % 3), tuple(source.randrange(4) for _ in range(n))) for n in (1, 2, 5))
            )
            for q in range(20)
        ]
    )
    order = source.sample(range(len(rows)), len(rows))
    straight = list(plan_packs(rows, ROOMY))
    shuffled = list(plan_packs([rows[i] for i in order], ROOMY))
    for one, other in zip(straight, shuffled, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.reads[3].tolist() == [order[i] for i in other.reads[3]]


def test_no_rows_no_packs() -> None:
    assert list(plan_packs([], ROOMY)) == []


def test_ids_beyond_sixteen_bits() -> None:
    follow([((70_000, 5), (200_000, 1)), ((70_000, 6), (3,))], ROOMY)
