"""The product for bfloat16 matrix units: rounds A and x's gradient as autocast does, and S not at all.

On a CPU the same arithmetic is done in float32, so these tests hold the splitting and the stacking; layers
are made to take this way by saying that it suits their input.
"""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from cme_bench.adapters import record_router
from cme_bench.adapters.methods.teamlora import TeamLoraLinear
from cme_bench.adapters.routing import bf16_products
from cme_bench.adapters.routing.layer import RoutedLinear
from cme_bench.adapters.routing.router import router_logits
from tests.support.adapter_cases import CONFIGS

TOKENS, D_IN, WIDTH, K = (3, 7), 200, 12, 3


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(*TOKENS, D_IN).bfloat16().requires_grad_()
    down = (torch.randn(WIDTH, D_IN) / D_IN**0.5).requires_grad_()
    router = (torch.randn(K, D_IN) / D_IN**0.5).requires_grad_()
    return x, down, router


def test_logits_are_exact_and_the_latent_is_rounded_once() -> None:
    x, down, router = inputs()
    z, logits = bf16_products.latent_and_logits(x, down, router)
    assert (z.dtype, logits.dtype) == (torch.bfloat16, torch.float32)
    exact = x.double() @ router.double().T
    torch.testing.assert_close(logits.double(), exact, atol=2e-6, rtol=0)
    assert (x.double() @ router.bfloat16().double().T - exact).abs().max() > 1e-3
    wanted = x.double() @ down.bfloat16().double().T
    torch.testing.assert_close(z, wanted.bfloat16(), atol=0.02, rtol=0.008)


def test_gradients() -> None:
    x, down, router = inputs()
    gates, weight = torch.randn(*TOKENS, K), torch.randn(*TOKENS, WIDTH).bfloat16()
    z, logits = bf16_products.latent_and_logits(x, down, router)
    loss = (z * weight).sum() + (logits * gates).sum()
    grad_x, grad_down, grad_router = torch.autograd.grad(loss, (x, down, router))
    assert (grad_x.dtype, grad_down.dtype, grad_router.dtype) == (torch.bfloat16, *[torch.float32] * 2)
    wanted = gates.double().flatten(0, 1).T @ x.double().flatten(0, 1)
    torch.testing.assert_close(grad_router.double(), wanted, atol=5e-6, rtol=1e-6)
    wanted = weight.double().flatten(0, 1).T @ x.double().flatten(0, 1)
    torch.testing.assert_close(grad_down.double(), wanted, atol=5e-6, rtol=1e-6)
    wanted = weight.double() @ down.double() + gates.double() @ router.double()
    torch.testing.assert_close(grad_x.double(), wanted, atol=0.05, rtol=0.01)


@pytest.mark.parametrize("latent", (True, False))
def test_several_adapters_at_once_are_each_by_itself(latent: bool) -> None:
    """As a sweep asks: its adapters are stacked, and computed under vmap."""

    def loss(x: Tensor, down: Tensor, router: Tensor) -> Tensor:
        logits = router_logits(x, router)
        if latent:
            z, logits = bf16_products.latent_and_logits(x, down, router)
            logits = logits + z.float().sum(-1, keepdim=True)
        return (logits * torch.arange(K)).sum()

    cases = [inputs() for _ in range(2)]
    stacked = [torch.stack(parts) for parts in zip(*cases, strict=True)]
    together = torch.func.vmap(loss)(*stacked)
    wanted = [loss(*case) for case in cases]
    torch.testing.assert_close(together, torch.stack(wanted), atol=1e-3, rtol=1e-5)
    used = [part for case in cases for part in (case if latent else (case[0], case[2]))]
    grads = torch.autograd.grad(together.sum(), used)
    for grad, apart in zip(grads, torch.autograd.grad(torch.stack(wanted).sum(), used), strict=True):
        torch.testing.assert_close(grad, apart, atol=1e-3, rtol=1e-3)


def test_without_a_latent_and_with_frozen_weights() -> None:
    x, down, router = inputs()
    _, logits = bf16_products.latent_and_logits(x, down, router)
    none, alone = bf16_products.latent_and_logits(x, down[:0], router)
    assert none.shape == (*TOKENS, 0)
    assert torch.equal(alone, logits)
    z, logits = bf16_products.latent_and_logits(x, down.detach(), router.detach())
    (grad,) = torch.autograd.grad(z.float().sum() + logits.sum(), x)
    assert grad.shape == x.shape


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("method", ["teamlora", "moelora", "hydralora"])
def test_layers_agree_with_the_plain_way(
    method: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS[method](
        r=4, num_experts=K, init="random", dropout=dropout, target_modules=["0"], task_type=None
    )
    model = get_peft_model(nn.Sequential(nn.Linear(D_IN, 30, dtype=torch.bfloat16)), config).train()
    x = inputs()[0]

    def answer() -> tuple[Tensor, dict[str, Tensor], tuple[float, ...]]:
        torch.manual_seed(0)
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16), record_router(model) as record:
            out = model(x)
        out.float().square().sum().backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return out, grads, record.stats()[0].omega

    plain, plain_grads, plain_omega = answer()
    monkeypatch.setattr(bf16_products, "suits", lambda x: x.dtype == torch.bfloat16)
    fused, fused_grads, fused_omega = answer()
    torch.testing.assert_close(fused, plain, atol=0.05, rtol=0.02)
    assert fused_omega == pytest.approx(plain_omega, abs=1e-6)
    assert fused_grads.keys() == plain_grads.keys() and len(fused_grads) >= 3
    for name, grad in fused_grads.items():
        assert (grad - plain_grads[name]).norm() <= 0.02 * plain_grads[name].norm()


def test_omega_of_a_layer_is_as_exact_as_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    layer: RoutedLinear[object] = TeamLoraLinear(  # type: ignore[assignment]
        nn.Linear(D_IN, 30), "default", CONFIGS["teamlora"](r=4, num_experts=K)
    )
    x = torch.randn(500, D_IN).bfloat16()
    wanted = layer.double().routing(x.double(), "default").omega
    layer.float()
    monkeypatch.setattr(bf16_products, "suits", lambda x: True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, routing = layer._latent_and_routing(x, "default")
    torch.testing.assert_close(routing.omega.double(), wanted, atol=1e-6, rtol=0)


def test_outside_autocast_the_input_is_cast_once_and_nothing_is_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer: RoutedLinear[object] = TeamLoraLinear(  # type: ignore[assignment]
        nn.Linear(D_IN, 30, dtype=torch.bfloat16), "default", CONFIGS["teamlora"](r=4, num_experts=K)
    )
    monkeypatch.setattr(bf16_products, "suits", lambda x: x.dtype == torch.bfloat16)
    monkeypatch.setattr(
        bf16_products, "latent_and_logits", None
    )  # splits the router: dear where tokens are few
    x = torch.randn(2, D_IN).bfloat16()
    with torch.no_grad(), torch.profiler.profile(record_shapes=True) as profiler:
        layer(x)
    shapes = [event.input_shapes[0] for event in profiler.events() if event.name == "aten::_to_copy"]
    assert shapes.count([2, D_IN]) == 1
