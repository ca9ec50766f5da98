"""The kernels of slots against the loop over tokens and experts, without a GPU: Triton interprets them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import Tensor

from cme_bench.vllm_plugin.reference import silu_and_mul
from cme_bench.vllm_plugin.slot_form import common_room
from cme_bench.vllm_plugin.slot_index import TILES, SlotIndex
from cme_bench.vllm_plugin.slot_reference import Stack, by_rows
from tests.vllm_plugin.test_slots import ROOMS

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1, set before Triton is imported", allow_module_level=True)
pytest.importorskip("triton")

from cme_bench.vllm_plugin import slot_step

N_SLOTS, D_IN, HALF = 3, 128, 384


class Layer:
    """Two halves of one size, adapters in three slots, and a step in which the last tokens are a graph's."""

    def __init__(self, name: str, tokens: int) -> None:
        source = torch.Generator().manual_seed(tokens)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=source)

        self.room = common_room(ROOMS[name])
        spans = [(0, 0, HALF), (1, HALF, 2 * HALF)]
        self.stack = Stack.empty(N_SLOTS, D_IN, 2 * HALF, spans, self.room, torch.float32)
        for key in ("down", "up", "router", "interaction"):
            place = getattr(self.stack, key)
            place.copy_(0.1 * draw(*place.shape))
        experts = float(self.room.experts)
        numbers = [[2.0, 0.0, experts], [1.0, 0.5, max(1.0, experts - 1)], [0.5, 0.0, 1.0]]
        self.stack.settings.copy_(torch.tensor(numbers))
        self.index = SlotIndex(tokens, N_SLOTS)
        known = torch.randint(0, N_SLOTS + 1, (max(1, tokens - 2),), generator=source)
        self.index.set(known.numpy().astype(np.int32))
        self.x, self.y = draw(tokens, D_IN), draw(tokens, 2 * HALF)

    def step(self, plan: slot_step.Plan, partial: bool = False) -> slot_step.Step:
        s, grain = self.stack, 128
        held = slot_step.Held(
            s.down, s.up, s.router, s.interaction, s.settings,
            torch.tensor([start * grain >= HALF for start in range(2 * HALF // grain)], dtype=torch.int32),
        )  # fmt: skip
        room = self.room
        shape = slot_step.Shape(2, room.rank, room.experts, room.shared_latent, partial)
        index = self.index
        step = slot_step.Step(self.x, index.order, index.tiles, index.counters, held, shape, plan)
        step.shrink()
        return step


@pytest.mark.parametrize("programs", [1, 264], ids=["much each", "little each"])
@pytest.mark.parametrize("tokens", [1, 37, 90])
@pytest.mark.parametrize("name", ROOMS)
def test_every_plan_gives_what_the_loop_gives(
    name: str, tokens: int, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_step, "SPLIT_FROM", 32)
    layer = Layer(name, tokens)
    wanted = by_rows(layer.y, layer.x, layer.index.groups, layer.stack)
    for plan in slot_step.PLANS.values():
        step = layer.step(plan.with_programs(programs))
        torch.testing.assert_close(step.add(layer.y.clone()), wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(step.silu(layer.y), silu_and_mul(wanted), atol=1e-4, rtol=1e-4)
        assert not layer.index.counters.any()


@pytest.mark.parametrize("name", ROOMS)
def test_a_row_parallel_layer_is_gated_once_the_logits_are_summed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_step, "summed_over_ranks", lambda logits: logits)
    layer = Layer(name, 37)
    step = layer.step(slot_step.plan_of(37), partial=True)
    step.gate()
    wanted = by_rows(layer.y, layer.x, layer.index.groups, layer.stack)
    torch.testing.assert_close(step.add(layer.y.clone()), wanted, atol=1e-4, rtol=1e-4)


def test_every_size_of_tiles_has_a_table_for_the_steps_of_its_plan() -> None:
    for most, plan in slot_step.PLANS.items():
        assert all(TILES[tile] >= most for tile in plan.tiles)


@pytest.mark.parametrize(("tiles", "blocks"), [(1, 1), (3, 1), (4, 2), (12, 4), (100, 4)])
def test_programs_do_more_than_one_block_once_they_fill_the_card(tiles: int, blocks: int) -> None:
    """172 blocks of 64 columns a tile."""
    assert slot_step.Expand(32, 64, 4, 4).blocks_of(11008, tiles, 8) == blocks
    assert slot_step.Expand(32, 64, 4, 4).blocks_of(11008, tiles, 2) == min(blocks, 2)
