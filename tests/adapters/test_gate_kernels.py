"""The gate's Triton kernels against the plain operations; on a GPU, or with TRITON_INTERPRET=1 on a CPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from cme_bench.adapters.routing import gate_kernels
from cme_bench.adapters.routing.bf16_products import PIECES, stack, unstack
from cme_bench.adapters.routing.gate import GateSettings, gate, gate_backward
from cme_bench.adapters.routing.narrow import Narrow

pytest.importorskip("triton", reason="the kernels are Triton's")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED), reason="no GPU, and TRITON_INTERPRET=1 is not set"
)
DEVICE = "cpu" if INTERPRETED else "cuda"
TOKENS, RANK = 37, 12
ROUNDING = 0.016 if INTERPRETED else 0.008
"""Of bfloat16, relative; the interpreter cuts where a GPU rounds."""

SHAPES = [
    # k, one latent for all, M, divided, adapters
    (4, False, True, False, 0),
    (3, False, True, True, 0),
    (4, True, False, False, 0),
    (5, True, True, True, 2),
    (2, False, False, False, 3),
]


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain operations are asked for; the kernels are called."""
    monkeypatch.setattr(gate_kernels, "runs_on", lambda tensor: False)


def case(shape: Any, dtype: torch.dtype, pieces: int) -> tuple[Narrow, Tensor | None, GateSettings]:
    """What a product gives: z and the logits in pieces are columns of one tensor."""
    k, shared, mixed, normalize, adapters = shape
    torch.manual_seed(0)
    lead = (adapters, TOKENS) if adapters else (TOKENS,)
    width = RANK if shared else k * RANK
    out = torch.randn(*lead, width + pieces * k + 3, device=DEVICE)
    # some sums of omega below the floor, few near it, where a quotient is all rounding
    mixing = torch.eye(k, device=DEVICE) - 0.9 * torch.rand(*lead[:-1], k, k, device=DEVICE).round()
    found = Narrow(out[..., :width], out[..., width : width + pieces * k], out, None)
    return found, mixing if mixed else None, GateSettings(RANK, 1.7, normalize, dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "pieces"), [(torch.bfloat16, PIECES), (torch.float32, 1)])
def test_forward(shape: Any, dtype: torch.dtype, pieces: int) -> None:
    found, interaction, own = case(shape, dtype, pieces)
    wanted = gate(found, interaction, shape[0], own)
    got = gate_kernels.gate(
        found.z, found.logits, interaction, shape[0], rank=RANK, scale=own.scale, floor=own.floor, dtype=dtype
    )
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == theirs.dtype and mine.is_contiguous()
        tight = theirs.dtype == torch.float32
        # a quotient by a sum of both signs is the less exact
        exact = 1e-5 if shape[3] else 2e-6
        torch.testing.assert_close(
            mine, theirs, rtol=exact if tight else ROUNDING, atol=2e-6 if tight else 1e-3
        )


@pytest.mark.parametrize("of_routing", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["stacked", "pieces", "plain"])
def test_backward(shape: Any, form: str, of_routing: bool) -> None:
    k, dtype = shape[0], torch.float32 if form == "plain" else torch.bfloat16
    found, interaction, own = case(shape, dtype, 1)
    _, z, phi, omega = gate(found, interaction, k, own)
    grad = torch.randn(*z.shape[:-1], k * RANK, device=DEVICE).to(dtype)
    others = (torch.randn_like(phi), torch.randn_like(omega)) if of_routing else (None, None)
    rows = {"stacked": None, "pieces": z, "plain": phi}[form]
    wanted = gate_backward(grad, z, phi, interaction, others, rows, own)
    to_z, to_logits, to_interaction, gated = gate_kernels.gate_backward(
        grad,
        z,
        phi,
        interaction,
        *others,
        rank=RANK,
        scale=own.scale,
        floor=own.floor,
        pieces=0 if form == "plain" else PIECES,
        stacked=form == "stacked",
    )
    pairs: list[tuple[Any, Any]] = [(gated, wanted.gated), (to_z, wanted.narrow.z)]
    if form == "stacked":
        assert not to_z[..., z.shape[-1] + PIECES * k :].any()
    else:
        pairs.append((to_logits, wanted.narrow.logits))
    if interaction is None:
        assert to_interaction is None
    else:
        pairs.append((to_interaction, wanted.interaction))
    for mine, theirs in pairs:
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        tight = theirs.dtype == torch.float32
        scale = float(theirs.float().abs().max())
        error = 3e-6 * scale if tight else ROUNDING * scale
        torch.testing.assert_close(mine, theirs, rtol=0, atol=error)
    if form != "plain":
        first = z.shape[-1] if form == "stacked" else 0
        exact = gate_backward(grad, z, phi, interaction, others, phi, own).narrow.logits
        mine = (to_z if form == "stacked" else to_logits)[..., first : first + PIECES * k].float()
        assert exact is not None
        torch.testing.assert_close(
            sum(torch.split(mine, k, dim=-1)), exact, rtol=0, atol=3e-6 * float(exact.abs().max())
        )


def test_they_are_tried_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gate_kernels._gates(torch.device(DEVICE))
    assert gate_kernels.drops(torch.device(DEVICE))
    real = gate_kernels.gate
    monkeypatch.setattr(gate_kernels, "gate", lambda *a, **k: tuple(2 * t for t in real(*a, **k)))
    gate_kernels.work.cache_clear()
    with pytest.warns(UserWarning, match="compute something else"):
        assert not gate_kernels.work(torch.device(DEVICE))
    gate_kernels.work.cache_clear()


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if not shape[4]])
@pytest.mark.parametrize(("dtype", "pieces"), [(torch.bfloat16, PIECES), (torch.float32, 1)])
def test_a_gate_without_gradients_is_tried_by_the_forward_kernel_alone(
    shape: Any, dtype: torch.dtype, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    k, shared, mixed, divided, _ = shape
    width = RANK if shared else k * RANK
    columns = width + pieces * k + 3
    form = gate_kernels.Form(k, RANK, width, pieces, columns, mixed, divided, torch.float32, dtype)
    monkeypatch.setattr(gate_kernels, "gate_backward", None)
    monkeypatch.setattr(gate_kernels, "stack", None)
    assert gate_kernels._infers(torch.device(DEVICE), form)
    real = gate_kernels.gate
    monkeypatch.setattr(gate_kernels, "gate", lambda *a, **k: tuple(1.1 * t for t in real(*a, **k)))
    assert not gate_kernels._infers(torch.device(DEVICE), form)


@pytest.mark.parametrize("adapters", [0, 2])
@pytest.mark.parametrize(("width", "k", "d_in"), [(128, 4, 1100), (0, 3, 70), (12, 5, 2048)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stacking(adapters: int, width: int, k: int, d_in: int, dtype: torch.dtype) -> None:
    lead = (adapters,) if adapters else ()
    down = torch.randn(*lead, width, d_in, device=DEVICE)
    router = torch.randn(*lead, k, d_in, device=DEVICE).to(dtype)
    wanted = stack(down, router, dim=-2)
    got = gate_kernels.stack(down, router, wanted.shape[-2], PIECES)
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    if INTERPRETED:
        torch.testing.assert_close(got[..., :width, :], wanted[..., :width, :], rtol=ROUNDING, atol=0)
        assert torch.equal(unstack(got.float(), width, k, dim=-2)[1], router.float())
    else:
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_comes_through_a_dropout_is_added(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    total, through = (torch.randn(3, 700, device=DEVICE).to(dtype) for _ in range(2))
    kept = torch.rand(3, 700, device=DEVICE) > 0.3
    wanted = total.double() + 1.5 * through.double() * kept
    assert gate_kernels.add_kept(total, through, kept, 1.5) is total
    tight = dtype == torch.float32
    torch.testing.assert_close(
        total.double(), wanted, rtol=1e-6 if tight else ROUNDING, atol=1e-6 if tight else 1e-2
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dropout_is_what_its_mask_says(dtype: torch.dtype) -> None:
    x = torch.randn(3, 700, 9, device=DEVICE).to(dtype)
    seed = torch.tensor([7], device=DEVICE)
    seen, kept = gate_kernels.drop(x, 0.1, seed, 3)
    assert kept.shape == x.shape and kept.dtype == torch.bool
    torch.testing.assert_close(seen.float(), x.float() * kept / 0.9, rtol=ROUNDING, atol=0)
    assert abs(float(kept.float().mean()) - 0.9) < 0.01
    again, other_call = (gate_kernels.drop(x, 0.1, seed, call)[1] for call in (3, 4))
    other_seed = gate_kernels.drop(x, 0.1, seed + 1, 3)[1]
    assert torch.equal(kept, again)
    for other in (other_call, other_seed, kept.roll(1, 0), kept.roll(512, 1)):
        both = float((~kept & ~other).float().mean())
        assert both < 0.015, "drawn apart"
