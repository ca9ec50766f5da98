"""Who sees whom in a pack, as a kernel is told; and the kernel itself, on a GPU."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cme_bench.engines.hf.attention import AttentionCall
from cme_bench.engines.hf.tree_attention import KeptPrefix, PackAttention
from cme_bench.engines.hf.tree_kernel import BLOCK, Factors, Sight, block_lists, ends_of, plainly, suits
from cme_bench.engines.packs import Pack
from tests.engines.test_unit_attention import unit

CACHED = 70


def drawn_pack(seed: int, cached: int) -> Pack:
    drawn = random.Random(seed)
    lengths = [drawn.choice([1, 3, 40, 64, 65, 150, 300]) for _ in range(6)]
    return Pack(cached, False, tuple(unit(drawn, length, drawn.random() < 0.7) for length in lengths))


@pytest.mark.parametrize("seed", range(8))
def test_blocks_of_keys_are_those_that_some_query_sees(seed: int) -> None:
    ends = ends_of(drawn_pack(seed, 0))
    lists, blocks = block_lists(ends)
    index = np.arange(len(ends))
    seen = (index <= index[:, None]) & (index[:, None] < ends)
    assert len(lists) == -(-len(ends) // BLOCK) + 1
    assert lists[-1] == len(blocks)
    for query in range(len(lists) - 1):
        found = blocks[lists[query] : lists[query + 1]].tolist()
        assert found[0] == query  # so that a row has seen a key before all of a block's are masked
        assert len(set(found)) == len(found)
        rows = seen[query * BLOCK : (query + 1) * BLOCK]
        needed = {int(key) for key in np.flatnonzero(rows.any(0)) // BLOCK}
        assert needed <= set(found)
        assert max(found) == query


def attended(
    seed: int, cached: int, width: int, device: str
) -> tuple[Pack, AttentionCall, KeptPrefix, tuple[torch.Tensor, torch.Tensor]]:
    pack = drawn_pack(seed, cached)
    generator = torch.Generator().manual_seed(seed)
    shapes = [(6, pack.n_tokens), *[(2, pack.n_tokens)] * 2, *[(2, cached)] * 2]
    parts = [torch.randn(1, *shape, width, generator=generator).to(device) for shape in shapes]
    call = AttentionCall(nn.Identity(), *parts[:3], scaling=0.3)
    kept = KeptPrefix()
    kept.extend(call.module, 0, parts[3], parts[4])
    return pack, call, kept, (parts[3], parts[4])


@pytest.mark.parametrize("cached", [0, CACHED])
def test_the_plain_formula_is_the_attention_in_parts(cached: int) -> None:
    pack, call, kept, prefix = attended(1, cached, 8, "cpu")
    found = PackAttention(pack, kept, torch.device("cpu"), kernel=Factors.PIECES)(call)
    assert not suits(call, Factors.PIECES)
    torch.testing.assert_close(found.double(), plainly(call, ends_of(pack), prefix), rtol=1e-5, atol=1e-5)


ERRORS = {Factors.PIECES: 3e-6, Factors.HALVES: 1e-3}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize("cached", [0, CACHED])
@pytest.mark.parametrize("factors", list(Factors))
def test_a_gpu_attends_by_the_kernel_as_exactly_as_in_parts(
    factors: Factors, cached: int, width: int
) -> None:
    pack, call, kept, prefix = attended(2, cached, width, "cuda")
    assert suits(call, factors)
    device = torch.device("cuda", torch.cuda.current_device())
    wanted = plainly(call, ends_of(pack), prefix)
    if factors is Factors.HALVES:
        kept.extend(call.module, 0, prefix[0].half(), prefix[1].half())
    attend = PackAttention(pack, kept, device, kernel=factors)
    found = attend(call)
    assert attend._sights
    assert isinstance(next(iter(attend._sights.values())), Sight)
    in_parts = PackAttention(pack, kept, device)
    halves = replace(call, query=call.query.half(), key=call.key.half(), value=call.value.half())
    own = in_parts(call if factors is Factors.PIECES else halves)
    size = wanted.square().mean().sqrt()
    error, other = (float((got.double() - wanted).square().mean().sqrt() / size) for got in (found, own))
    print(f"width {width}, {cached} before, {factors.value}: {error:.1e}, torch's kernel {other:.1e}")
    assert error < ERRORS[factors]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cached", [0, CACHED])
def test_a_gpu_attends_by_the_kernel_to_bfloat16_states_as_they_are(cached: int) -> None:
    pack, call, kept, prefix = attended(3, cached, 64, "cuda")
    query, key, value, *before = (part.bfloat16() for part in (call.query, call.key, call.value, *prefix))
    call = replace(call, query=query, key=key, value=value)
    kept.extend(call.module, 0, *before)
    assert suits(call, Factors.HALVES)
    found = PackAttention(pack, kept, query.device, kernel=Factors.HALVES)(call)
    wanted = plainly(call, ends_of(pack), (before[0], before[1]))
    error = (found.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
    assert error < ERRORS[Factors.HALVES]
