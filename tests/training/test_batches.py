"""Batches: deterministic, complete, of similar length, and padded where nothing is learnt."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cme_bench.training.batches import IGNORED, Layout, collate, plan_batches, share
from cme_bench.training.packs import choose_width, fill, most_learnt
from cme_bench.training.sweep.join import join_packs

LENGTHS = np.random.default_rng(0).integers(5, 500, 403)


def plan(seed: int = 0, per_step: int = 2) -> list[list[int]]:
    return plan_batches(LENGTHS, batch_size=4, batches_per_step=per_step, seed=seed)


def test_the_seed_decides() -> None:
    assert plan(0) == plan(0)
    assert plan(0) != plan(1)


def test_every_example_is_there_and_few_come_twice() -> None:
    batches = plan()
    assert all(len(batch) == 4 for batch in batches)
    assert len(batches) % 2 == 0
    counts = Counter(i for batch in batches for i in batch)
    assert set(counts) == set(range(403))
    assert sum(counts.values()) == 408 and max(counts.values()) == 2


def test_fewer_examples_than_a_step() -> None:
    (first, second) = plan_batches(np.array([3, 4]), batch_size=4, batches_per_step=2, seed=0)
    assert Counter(first + second) == {0: 4, 1: 4}


def test_batches_are_of_similar_length_and_the_longest_comes_first() -> None:
    batches = plan()
    padded = sum(4 * LENGTHS[batch].max() for batch in batches)
    assert padded < 1.1 * sum(LENGTHS[batch].sum() for batch in batches)
    assert LENGTHS[batches[0] + batches[1]].max() == LENGTHS.max()
    order = [LENGTHS[batch].max() for batch in batches]
    assert order != sorted(order, reverse=True)


def test_processes_share_the_batches_of_a_step() -> None:
    batches = plan(per_step=2)
    first, second = (share(batches, process=p, processes=2) for p in (0, 1))
    assert [b for pair in zip(first, second, strict=True) for b in pair] == batches


def test_collate_learns_targets_only() -> None:
    examples = [
        {"ids": np.array([5, 6, 7, 8]), "source_length": 2},
        {"ids": np.array([9, 1]), "source_length": 1},
    ]
    batch = collate(examples, pad_token=0, multiple=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 0, 0], [9, 1, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    x = IGNORED
    assert batch["labels"].tolist() == [[x, x, 7, 8, x, x], [x, 1, x, x, x, x]]


def test_random_batches_hold_every_example_and_the_most_tokens_come_first() -> None:
    batches = plan_batches(LENGTHS, batch_size=4, batches_per_step=2, seed=0, order="random")
    assert set(Counter(i for batch in batches for i in batch)) == set(range(403))
    steps = [LENGTHS[first + second].sum() for first, second in zip(batches[::2], batches[1::2], strict=True)]
    assert steps[0] == max(steps)
    assert np.std(steps) < 0.5 * np.std(
        [LENGTHS[a + b].sum() for a, b in zip(plan()[::2], plan()[1::2], strict=True)]
    )


@pytest.mark.parametrize(("examples", "batch"), [(4800, 48), (403, 4), (5, 4), (64, 64)])
def test_even_batches_have_about_as_many_tokens_each(examples: int, batch: int) -> None:
    lengths = np.clip(np.random.default_rng(1).lognormal(4.3, 0.7, examples), 8, 256).astype(np.int64)
    planned = plan_batches(lengths, batch_size=batch, batches_per_step=2, seed=0, order="even")
    assert all(len(each) == batch for each in planned) and len(planned) % 2 == 0
    counts = Counter(i for each in planned for i in each)
    assert set(counts) == set(range(examples))
    assert sum(counts.values()) - examples < 2 * batch
    tokens = [int(lengths[each].sum()) for each in planned]
    if batch >= 48 and examples > batch:
        assert max(tokens) < 1.01 * min(tokens)
        width = choose_width(lengths, planned, apart=True)
        assert all(len(fill(lengths[each].tolist(), width)) == 1 for each in planned), "a batch is one pack"
    assert planned != plan_batches(lengths, batch_size=batch, batches_per_step=2, seed=1, order="even")


def test_long_and_short_examples_come_in_every_order() -> None:
    """What a batch holds, and when it comes, tells nothing of each other."""
    lengths = np.sort(np.random.default_rng(1).integers(8, 256, 960))
    planned = np.array(plan_batches(lengths, batch_size=32, batches_per_step=1, seed=3, order="even"))
    longest = lengths[planned].max(1)
    assert abs(np.corrcoef(longest, np.arange(30))[0, 1]) < 0.5


def test_batches_of_known_size_have_one_shape() -> None:
    rows = [
        [{"ids": np.arange(1, n + 1), "source_length": s} for n, s in pairs]
        for pairs in (((3, 1), (5, 4)), ((4, 1), (4, 1)), ((1, 1), (7, 7)))
    ]
    lengths, learnt = np.array([3, 5, 4, 4, 1, 7]), np.array([2, 1, 3, 3, 0, 0])
    batches = [[0, 1], [2, 3], [4, 5]]
    layout = Layout(
        0,
        width=choose_width(lengths, batches, apart=True),
        longest=7,
        learnt=most_learnt(learnt, batches),
    )
    made = [layout.collate(each) for each in rows]
    assert len({tuple((name, t.shape) for name, t in batch.items()) for batch in made}) == 1
    assert [int((batch["targets"] != IGNORED).sum()) for batch in made] == [3, 6, 0]
    small = Layout(0, width=64, longest=7, learnt=2).collate(rows[1])
    assert int((small["targets"] != IGNORED).sum()) == 6, "a bound that was wrong loses no token"


def test_packs_that_nobody_needs_are_padding_that_sees_itself_alone() -> None:
    examples = [
        {"ids": np.array([5, 6, 7]), "source_length": 1},
        {"ids": np.array([8, 9]), "source_length": 1},
    ]
    batch = Layout(0, width=4).packed(examples, [[0], [1], []])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert batch["starts"].tolist() == [0, 3, 4, 6, 8, 12]


def test_padding_is_cut_where_examples_have_a_bound() -> None:
    examples = [{"ids": np.arange(1, n + 1), "source_length": 1} for n in (3, 2)]
    layout = Layout(0, width=8, longest=3)
    batch = layout.packed(examples, [[0, 1], []])
    starts = batch["starts"].tolist()
    assert starts == [0, 3, 5, 8, 11, 14, 16, 16, 16] and batch["position_ids"][0, 3] == 0
    assert len(starts) == len(layout.packed(examples, [[0], [1]])["starts"]), "shapes repeat"
    with pytest.raises(ValueError, match="4 tokens"):
        layout.packs([{"ids": np.arange(4)}])


def test_the_batches_of_members_are_joined_as_if_each_were_alone() -> None:
    examples = [{"ids": np.arange(1, n + 1), "source_length": 1} for n in (3, 2, 4, 4, 1)]
    layout = Layout(0, width=4)
    joined = join_packs([layout, layout], [examples[:2], examples[2:]])
    assert joined.sizes == [3, 3] and joined.widths == [4, 4]
    learnt = [[[2, 3, 2]], [[2, 3, 4, 2, 3, 4]]]
    flat = joined.tensors["input_ids"].flatten()
    for own, (places, targets) in zip(
        learnt, zip(joined.tensors["places"], joined.tensors["targets"], strict=True), strict=True
    ):
        wanted = targets != IGNORED
        assert targets[wanted].tolist() == flat[places[wanted] + 1].tolist() == own[0]
    assert joined.counts()[0].tolist() == [3, 6] and joined.counts()[1].tolist() == [5, 9]
    starts = joined.tensors["starts"].tolist()
    assert starts == sorted(starts) and starts[-1] == 24 and {0, 3, 4, 6, 12, 16, 20} <= set(starts)
