"""Units of like length side by side, long ones in parts: the same attention, cheaper."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cme_bench.engines.hf import unit_attention
from cme_bench.engines.hf.attention import AttentionCall
from cme_bench.engines.hf.tree_attention import KeptPrefix, PackAttention
from cme_bench.engines.hf.unit_attention import bands, parts
from cme_bench.engines.packs import Pack, Unit

CPU = torch.device("cpu")


def cost(lengths: list[int], cuts: tuple[int, ...], launch: float) -> float:
    edges = [0, *cuts, len(lengths)]
    return sum((b - a) * max(lengths[a:b]) ** 2 + launch for a, b in itertools.pairwise(edges))


@pytest.mark.parametrize("launch", [1.0, 400.0, 1e9])
def test_bands_are_the_best_of_all(launch: float) -> None:
    drawn = random.Random(0)
    for _ in range(20):
        lengths = sorted((8 * drawn.randint(1, 9) ** 2 for _ in range(7)), reverse=True)
        found = bands(np.array(lengths), launch)
        assert [n for a, b in found for n in range(a, b)] == list(range(7))
        ways = itertools.chain.from_iterable(itertools.combinations(range(1, 7), n) for n in range(7))
        least = min(cost(lengths, cuts, launch) for cuts in ways)
        assert cost(lengths, tuple(a for a, _ in found[1:]), launch) == pytest.approx(least)


def test_units_of_one_length_and_many_lengths_are_divided_quickly() -> None:
    assert bands(np.full(500, 77), 1.0) == [(0, 500)]
    drawn = random.Random(1)
    unsorted = np.array([drawn.randint(1, 4000) for _ in range(500)])
    found = bands(unsorted, 1.0)
    assert [n for a, b in found for n in range(a, b)] == list(range(500))
    assert len(found) <= 33


@pytest.mark.parametrize(("pairs", "launch", "count"), [(100.0, 1e9, 1), (8e6, 1e6, 2), (1e9, 1.0, 7)])
def test_parts_cover_all_queries(pairs: float, launch: float, count: int) -> None:
    found = parts(pairs, 203, launch)
    assert len(found) == count
    assert [n for a, b in found for n in range(a, b)] == list(range(203))
    assert all(a % 8 == 0 for a, _ in found)


def unit(drawn: random.Random, length: int, branching: bool) -> Unit:
    """A chain, or a trunk with branches; ``end`` of a token is where its subtree ends."""
    trunk = length // 2 if branching else length
    end = [length] * trunk
    while len(end) < length:
        size = min(drawn.randint(1, 5), length - len(end))
        end += [len(end) + size] * size
    positions = [i if i < trunk else trunk for i in range(length)]
    nothing = np.empty(0, np.int64)
    return Unit(np.zeros(length, np.int64), np.array(positions), np.array(end), nothing, nothing, nothing)


def dense(pack: Pack, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """Every token over those it sees, one mask for all: [1, n, heads, size]."""
    n = pack.n_tokens
    seen = torch.zeros(n, n, dtype=torch.bool)
    for start, one in zip(pack.starts, pack.units, strict=False):
        for i in range(len(one.end)):
            for j in range(i + 1):
                near = window is None or one.positions[i] - one.positions[j] < window
                seen[start + i, start + j] = bool(i < one.end[j] and near)
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return (scores.masked_fill(~seen, -1e30).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("launch", [1 << 40, 1], ids=["side by side", "divided"])
@pytest.mark.parametrize("window", [None, 9])
def test_every_division_is_the_dense_attention(
    window: int | None, launch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_attention, "_LAUNCH", {"cpu": launch})
    drawn = random.Random(2)
    torch.manual_seed(0)
    lengths = (70, 66, 41, 40, 12, 12, 3, 1)
    for branching in (True, False, None):
        units = tuple(
            unit(drawn, length, drawn.random() < 0.5 if branching is None else branching)
            for length in lengths
        )
        pack = Pack(0, False, units)
        query, key, value = (torch.randn(1, heads, pack.n_tokens, 8) for heads in (4, 2, 2))
        attend = PackAttention(pack, KeptPrefix(), CPU)
        got = attend(AttentionCall(nn.Identity(), query, key, value, window=window))
        assert (len(attend._units) > 1) == (launch == 1)
        torch.testing.assert_close(got, dense(pack, query, key, value, window), rtol=1e-5, atol=1e-5)
