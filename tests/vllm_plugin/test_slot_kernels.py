"""The kernels of slots against the loop over tokens and experts, on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cme_bench.vllm_plugin.reference import silu_and_mul
from cme_bench.vllm_plugin.slot_form import common_room
from cme_bench.vllm_plugin.slot_index import SlotIndex
from cme_bench.vllm_plugin.slot_reference import Stack, by_rows
from tests.vllm_plugin.test_slots import ROOMS, Case, batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels need a CUDA GPU")

TOLERANCE = 1e-2
"""Relative error by norm, in bfloat16."""


def with_programs(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small layers be computed as large ones are on a card that so many programs fill."""
    from cme_bench.vllm_plugin import slot_step

    plans = {most: plan.with_programs(programs) for most, plan in slot_step.PLANS.items()}
    blocks = {most: replace(p, shrink=replace(p.shrink, block=32)) for most, p in plans.items()}
    monkeypatch.setattr(slot_step, "PLANS", blocks)
    monkeypatch.setattr(slot_step, "SPLIT_FROM", 32)


@pytest.mark.parametrize("tokens", [1, 17, 70, 300, 600, 2100])
@pytest.mark.parametrize("name", ROOMS)
@pytest.mark.parametrize("programs", [1, 264])
def test_every_token_has_the_update_of_its_own_adapter(
    name: str, tokens: int, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``programs``: 264 splits the sums of few tokens, 1 never does, and lets each do several blocks."""
    from cme_bench.vllm_plugin import slot_kernels

    with_programs(programs, monkeypatch)
    case = Case(ROOMS[name], torch.bfloat16, "cuda")
    y, x, slots = batch(tokens, len(case.specs))
    index = SlotIndex(tokens, len(case.specs), torch.device("cuda"))
    index.set(slots.numpy().astype("int32"))
    assert slot_kernels.why_not(case.stack) is None
    fused = slot_kernels.Slotted(case.stack, index, partial=False)
    found = fused.updated(y.cuda().bfloat16(), x.cuda().bfloat16()).float().cpu()
    wanted = case.exact(y[:200], x.bfloat16().float()[:200], slots[:200])
    assert (found[:200] - wanted).norm() / wanted.norm() < TOLERANCE
    base = slots == 0
    assert torch.equal(found[base], y[base].bfloat16().float())
    weight = torch.zeros(y.shape[1], x.shape[1], device="cuda", dtype=torch.bfloat16)
    alone = fused.linear(x.cuda().bfloat16(), weight).float().cpu()
    wanted = case.exact(torch.zeros_like(y[:200]), x.bfloat16().float()[:200], slots[:200])
    assert (alone[:200] - wanted).norm() / wanted.norm() < TOLERANCE
    assert not index.counters.any()


@pytest.mark.parametrize("programs", [1, 264])
@pytest.mark.parametrize("beside", ["0", "1"])
@pytest.mark.parametrize("tokens", [1, 70, 300, 600, 2100])
def test_the_activation_after_a_layer_is_computed_with_it(
    tokens: int, beside: str, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last two tokens are a graph's: they are of no request, and yet must be numbers."""
    from cme_bench.vllm_plugin import slot_kernels

    with_programs(programs, monkeypatch)
    monkeypatch.setenv(slot_kernels.BESIDE_SWITCH, beside)
    device, kind, d_in, half = torch.device("cuda"), torch.bfloat16, 256, 192
    room = common_room(ROOMS["mixed"])
    stack = Stack.empty(3, d_in, 2 * half, [(0, 0, half), (1, half, 2 * half)], room, kind, kind, device)
    torch.manual_seed(0)
    for name in ("down", "up", "router", "interaction"):
        getattr(stack, name).normal_(std=0.1)
    stack.settings.copy_(torch.tensor([[2.0, 0.0, 4.0], [1.0, 0.5, 3.0], [1.0, 0.0, 1.0]]))
    index = SlotIndex(tokens, 3, device)
    index.set(torch.randint(0, 4, (tokens,)).numpy().astype("int32")[: max(1, tokens - 2)])
    x = torch.randn(tokens, d_in, device=device, dtype=kind)
    weight = torch.randn(2 * half, d_in, device=device, dtype=kind) * d_in**-0.5
    fused = slot_kernels.Slotted(stack, index, partial=False)
    assert fused.has_halves
    found = fused.linear(x, weight, silu=True).float()
    wanted = silu_and_mul(by_rows(x @ weight.T, x, index.groups, stack)).float()
    assert (found - wanted).norm() / wanted.norm() < TOLERANCE


@pytest.mark.parametrize("name", ROOMS)
def test_the_kernels_pass_their_trial_here(name: str) -> None:
    from cme_bench.vllm_plugin import trials

    device = torch.device("cuda")
    assert trials.slots_work(common_room(ROOMS[name]), torch.bfloat16, device)
    for spec in ROOMS[name]:
        assert trials.silu_works(replace(spec, rank=32), torch.bfloat16, device)
