"""The fused layers against the equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cme_bench.adapters import TeamLoraConfig, registry
from cme_bench.adapters.methods.teamlora import TeamLoraLinear
from cme_bench.adapters.routing.router import NORMALIZER_FLOOR, route
from cme_bench.adapters.shared.layer import AdapterLinear
from tests.support import adapter_reference as reference
from tests.support.adapter_cases import CONFIGS

LAYERS = {name: registry.method(name).model_class.tuner_layer_cls for name in CONFIGS}
K, R, ALPHA = 3, 4, 6.0


def layer_of(method: str, dtype: torch.dtype = torch.float32, **fields: object) -> AdapterLinear:
    settings = {"r": R, "alpha": ALPHA, "init": "random", **fields}
    if registry.method(method).routed:
        settings.setdefault("num_experts", K)
    return LAYERS[method](nn.Linear(20, 14, dtype=dtype), "default", CONFIGS[method](**settings))


def tensors(layer: AdapterLinear) -> dict[str, Tensor]:
    return {name.split("_")[1]: getattr(layer, name)["default"] for name in layer.adapter_layer_names}


@pytest.mark.parametrize("method", LAYERS)
def test_fused_equals_reference_with_gradients(method: str) -> None:
    layer = layer_of(method)
    x = torch.randn(2, 5, 20, requires_grad=True)
    out_weight = torch.randn(2, 5, 14)
    wanted = layer.base_layer(x) + getattr(reference, method)(x, tensors(layer), K, R, ALPHA)
    parameters = [x, *tensors(layer).values()]
    wanted_grads = torch.autograd.grad((wanted * out_weight).sum(), parameters)
    got = layer(x)
    grads = torch.autograd.grad((got * out_weight).sum(), parameters)
    assert (got - wanted).abs().max() <= 1e-6 * max(1.0, wanted.abs().max())
    for mine, theirs in zip(grads, wanted_grads, strict=True):
        assert (mine - theirs).abs().max() <= 1e-6 * max(1.0, theirs.abs().max())


@pytest.mark.parametrize("method", LAYERS)
def test_gradcheck_in_float64(method: str) -> None:
    layer = (
        layer_of(method, torch.float64, num_experts=2, r=2)
        if registry.method(method).routed
        else layer_of(method, torch.float64, r=2)
    )
    parameters = list(tensors(layer).values())
    assert {p.dtype for p in parameters} == {torch.float64}
    x = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    # The parameters are leaves that the layer reads itself; gradcheck perturbs them in place.
    assert torch.autograd.gradcheck(lambda x, *_: layer.delta(x, "default"), (x, *parameters))


@pytest.mark.parametrize(
    "fields",
    [
        {"normalize_omega": True},
        {"omega_times_k": True},
        {"normalize_omega": True, "omega_times_k": True, "scaling": "alpha/(k*r)"},
        {"scaling": 0.5},
        {"competition": False},
    ],
)
def test_gradcheck_of_the_conventions(fields: dict[str, object]) -> None:
    layer = layer_of("teamlora", torch.float64, r=2, **fields)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    x = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer.delta(x, "default"), (x, *parameters))


def test_authors_preset_equals_their_formula() -> None:
    config = TeamLoraConfig.preset("authors-2024-08", r=R, num_experts=K, alpha=ALPHA, init="random")
    layer = TeamLoraLinear(nn.Linear(20, 14), "default", config)
    t = tensors(layer)
    m0 = (t["interaction"] - torch.eye(K)).T
    x = torch.randn(7, 20)
    wanted = reference.authors(
        x, t["down"], list(t["up"].split(R, dim=1)), t["router"], m0, alpha=ALPHA, total_rank=K * R
    )
    torch.testing.assert_close(layer.delta(x, "default"), wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({}, ALPHA / R),
        ({"scaling": "alpha/(k*r)"}, ALPHA / (K * R)),
        ({"scaling": 0.25}, 0.25),
        ({"omega_times_k": True}, K * ALPHA / R),
        ({"omega_times_k": True, "scaling": "alpha/(k*r)"}, ALPHA / R),
    ],
)
def test_scaling_rules(fields: dict[str, object], scale: float) -> None:
    layer = layer_of("teamlora", **fields)
    assert layer.settings["default"].scale == pytest.approx(scale)
    x = torch.randn(5, 20)
    wanted = scale * reference.teamlora(x, tensors(layer), K, R, float(R))
    torch.testing.assert_close(layer.delta(x, "default"), wanted, atol=1e-6, rtol=1e-5)


def test_ablations() -> None:
    """Collaboration only is M = I, hence MoELoRA; competition only is MoELoRA's pairs with omega = M phi."""
    x = torch.randn(5, 20)
    alone = layer_of("teamlora", competition=False)
    assert "default" not in alone.teamlora_interaction
    t = {
        name: value["default"]
        for name in ("down", "up", "router")
        if (value := getattr(alone, f"teamlora_{name}"))
    }
    wanted = reference.teamlora(x, {**t, "interaction": torch.eye(K)}, K, R, ALPHA)
    torch.testing.assert_close(alone.delta(x, "default"), wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(reference.moelora(x, t, K, R, ALPHA), wanted, atol=1e-6, rtol=1e-5)

    pairs = layer_of("teamlora", collaboration=False)
    t = tensors(pairs)
    omega = torch.softmax(x @ t["router"].T, -1) @ t["interaction"].T
    a, b = reference._experts(t, K, R)
    wanted = ALPHA / R * sum(omega[:, i : i + 1] * (x @ a[i] @ b[i]) for i in range(K))
    torch.testing.assert_close(pairs.delta(x, "default"), wanted, atol=1e-6, rtol=1e-5)


def test_start() -> None:
    layer = layer_of("teamlora", init="zero", interaction_init=0.1)
    t = tensors(layer)
    assert torch.equal(t["up"], torch.zeros_like(t["up"]))
    assert torch.equal(t["interaction"].diagonal(), torch.ones(K))
    off = t["interaction"][~torch.eye(K, dtype=torch.bool)]
    assert 0 < off.abs().max() <= 0.1
    bound = 20**-0.5
    for name in ("down", "router"):
        assert 0.5 * bound < t[name].abs().max() <= bound


def test_renormalising_is_clamped() -> None:
    """With off-diagonals of -0.5 the sum is 0; with -1 it is -1, which unclamped would flip every sign."""
    x, router = torch.randn(50, 20), torch.randn(K, 20, requires_grad=True)
    for off in (-0.5, -0.499, -1.0):
        m = torch.full((K, K), off).fill_diagonal_(1.0).requires_grad_()
        phi, omega = route(x, router, m, normalize=True)
        assert omega.isfinite().all()
        assert omega.abs().max() <= (phi @ m.T).abs().max() / NORMALIZER_FLOOR
        grads = torch.autograd.grad(omega.square().sum(), [router, m])
        assert all(g.isfinite().all() for g in grads)
    _, omega = route(x, router, torch.eye(K), normalize=True)
    torch.testing.assert_close(omega.sum(-1), torch.ones(50))


def test_autocast_leaves_omega_exact() -> None:
    layer = layer_of("teamlora")
    x = torch.randn(64, 20, dtype=torch.bfloat16)
    wanted = layer.routing(x.float(), "default")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer.routing(x, "default")
        assert layer(x).dtype == torch.bfloat16
    assert torch.equal(got.omega, wanted.omega) and got.omega.dtype == torch.float32
    assert torch.equal(got.phi, wanted.phi)


def test_router_gradient_under_autocast() -> None:
    """A backward pass inside autocast computes the router's gradient in float32 too."""
    router = torch.randn(K, 20, requires_grad=True)
    x = torch.randn(8, 20).bfloat16()
    weight = torch.randn(8, K)
    (exact,) = torch.autograd.grad((torch.softmax(x.float() @ router.T, -1) * weight).sum(), router)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (got,) = torch.autograd.grad((route(x, router).phi * weight).sum(), router)
    torch.testing.assert_close(got, exact, atol=1e-6, rtol=1e-5)


def test_dropout_places() -> None:
    x = torch.ones(400, 20)
    for place in ("input", "latent"):
        layer = layer_of("teamlora", dropout=0.5, dropout_place=place).train()
        torch.manual_seed(0)
        dropped = layer.delta(x, "default")
        assert not torch.equal(dropped, layer.eval().delta(x, "default"))
        layer.train()
        # The router never sees dropout.
        assert torch.equal(layer.routing(x, "default").omega[0], layer.routing(x, "default").omega[1])
        t = tensors(layer)
        omega = layer.routing(x, "default").omega.repeat_interleave(R, dim=-1) * ALPHA / R
        torch.manual_seed(0)
        if place == "input":
            wanted = (nn.functional.dropout(x, 0.5) @ t["down"].T * omega) @ t["up"].T
        else:
            wanted = nn.functional.dropout(x @ t["down"].T * omega, 0.5) @ t["up"].T
        torch.testing.assert_close(dropped, wanted, atol=1e-5, rtol=1e-5)


def test_no_full_width_copy_is_saved_for_backward() -> None:
    """Autograd keeps a few latents of k r numbers a token, and of bfloat16 inputs no float32 copy."""
    layer = TeamLoraLinear(
        nn.Linear(512, 256, dtype=torch.bfloat16),
        "default",
        TeamLoraConfig(r=8, num_experts=4, init="random"),
    )
    layer.requires_grad_(True)
    layer.base_layer.requires_grad_(False)
    x = torch.randn(10, 512, dtype=torch.bfloat16, requires_grad=True)
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        own = {x.data_ptr(), *(p.data_ptr() for p in layer.parameters())}
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        layer(x).sum()
    weights = 2 * (8 * 4 * (512 + 256))  # autocast's bfloat16 copies of A and B
    assert sum(held.values()) - weights <= 10 * 8 * 4 * (2 + 4 + 2 + 4)
