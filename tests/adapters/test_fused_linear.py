"""A routed layer as one step of autograd: equal to the plain formula, and less is kept and passed over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from cme_bench.adapters import TeamLoraConfig, balance_tape
from cme_bench.adapters.routing import bf16_products
from cme_bench.adapters.routing.layer import RoutedLinear
from cme_bench.adapters.shared.recompute import kept_factors
from cme_bench.training.memory import kept_bytes
from tests.support.adapter_cases import CONFIGS

D_IN, D_OUT, K, R = 40, 24, 3, 4
METHODS = ("teamlora", "moelora", "hydralora")


def adapted(method: str = "teamlora", dtype: torch.dtype = torch.float32, **fields: Any) -> PeftModel:
    """One linear with an adapter, in training mode; ``frozen`` are the base's weight and bias."""
    torch.manual_seed(0)
    settings = {"r": R, "num_experts": K, "init": "random", "task_type": None, **fields}
    config = CONFIGS[method](target_modules=["0"], **settings)
    model = get_peft_model(nn.Sequential(nn.Linear(D_IN, D_OUT, dtype=dtype)), config)
    return model.to(torch.float64).train() if dtype == torch.float64 else model.train()


def layer_of(model: PeftModel) -> RoutedLinear[Any]:
    return next(m for m in model.modules() if isinstance(m, RoutedLinear))


def gradients(
    model: PeftModel, x: Tensor, *, autocast: bool = False, balance: bool = True
) -> dict[str, Tensor]:
    """Output, and gradients by name, of a loss on the output and on the routing."""
    torch.manual_seed(7)
    model.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), balance_tape(model) as tape:
        out = model(x)
        loss = (out.double() * torch.linspace(-1, 1, D_OUT, dtype=torch.float64)).square().sum()
        loss = loss + tape.loss(3.0) if balance else loss
    loss.backward()
    assert x.grad is not None
    found = {"output": out.detach(), "x": x.grad}
    return found | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Tensor]]:
    """``gradients`` of the same layer, computed by autograd through the plain formula."""

    def compute(model: PeftModel, x: Tensor, **how: Any) -> dict[str, Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(RoutedLinear, "_fuses", lambda *_: False)
            return gradients(model, x, **how)

    return compute


def check(got: dict[str, Tensor], wanted: dict[str, Tensor], error: float) -> None:
    """Every gradient is within ``error`` of the other, relative to its norm."""
    assert got.keys() == wanted.keys() and len(got) >= 5
    for name, value in got.items():
        assert value.dtype == wanted[name].dtype, name
        assert (value - wanted[name]).double().norm() <= error * wanted[name].double().norm(), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_it_is_the_plain_formula(
    method: str, dropout: float, dtype: torch.dtype, error: float, plainly: Any
) -> None:
    model, x = adapted(method, dtype, dropout=dropout), torch.randn(2, 9, D_IN, dtype=dtype)
    check(gradients(model, x), plainly(model, x), error)
    check(gradients(model, x, balance=False), plainly(model, x, balance=False), error)


@pytest.mark.parametrize(
    "fields",
    [
        {"normalize_omega": True},
        {"omega_times_k": True, "scaling": "alpha/(k*r)", "dropout": 0.2, "dropout_place": "latent"},
        {"competition": False},
    ],
)
def test_the_conventions(fields: dict[str, Any], plainly: Any) -> None:
    model, x = adapted(**fields), torch.randn(3, 20, D_IN)
    check(gradients(model, x), plainly(model, x), 1e-6)


@pytest.mark.parametrize("exact", [False, True], ids=["router apart", "router in pieces"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_is_as_close_to_float32_as_the_plain_formula(
    method: str, dropout: float, exact: bool, plainly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if exact:
        monkeypatch.setattr(bf16_products, "suits", lambda x: x.dtype == torch.bfloat16)
    x = torch.randn(2, 64, D_IN).bfloat16()
    model = adapted(method, torch.bfloat16, dropout=dropout)
    got, rounded = (way(model, x, autocast=True) for way in (gradients, plainly))
    layer = layer_of(model)
    layer.base_layer.float()
    exactly = plainly(model, x.float())
    assert got.keys() == exactly.keys()
    for name, wanted in exactly.items():
        mine, theirs = ((way[name] - wanted).norm() for way in (got, rounded))
        assert mine <= 1.2 * theirs + 1e-3 * wanted.norm(), name


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("base", [torch.bfloat16, torch.float32])
def test_dtypes_that_differ(base: torch.dtype, exact: bool, plainly: Any, monkeypatch: Any) -> None:
    """Without autocast a float32 adapter on a bfloat16 base; with it a float32 base, and a bfloat16
    adapter."""
    monkeypatch.setattr(bf16_products, "suits", lambda x: exact and x.dtype == torch.bfloat16)
    x = torch.randn(2, 30, D_IN, dtype=base)
    for autocast in (False, True):
        model = adapted(dtype=base)
        check(gradients(model, x, autocast=autocast), plainly(model, x, autocast=autocast), 0.02)
        layer_of(model).narrow("default")
        check(gradients(model, x, autocast=autocast), plainly(model, x, autocast=autocast), 0.02)


@pytest.mark.parametrize("shape", [(), (7,), (0,), (2, 0), (2, 3, 4)])
def test_any_shape(shape: tuple[int, ...], plainly: Any) -> None:
    model, x = adapted(dropout=0.2), torch.randn(*shape, D_IN)
    check(gradients(model, x, balance=False), plainly(model, x, balance=False), 1e-6)


def test_gradients_of_every_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """vmap of grad, as for privacy or influence."""
    model, x = adapted(), torch.randn(5, 3, D_IN)
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(model, parameters, (x,))
        return out.square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))
    together = each(trained, x)
    monkeypatch.setattr(RoutedLinear, "_fuses", lambda *_: False)
    check(together | {"more": x}, each(trained, x) | {"more": x}, 1e-6)


def test_a_divisor_that_is_clamped_has_no_gradient(plainly: Any) -> None:
    model, x = adapted(normalize_omega=True), torch.randn(3, 20, D_IN)
    with torch.no_grad():
        layer_of(model).held("interaction", "default").fill_(-0.9).fill_diagonal_(1.0)  # omega's sum: -0.8
    check(gradients(model, x), plainly(model, x), 1e-6)


class Wide(TorchDispatchMode):
    """Names of the operations whose result has a full-width row for every token."""

    def __init__(self, tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tokens, self.names = tokens, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view and out.numel() >= self.tokens * D_OUT:
            self.names.append(func.overloadpacket.__name__)
        return out


def test_full_width_is_passed_over_by_products_alone() -> None:
    model, x = adapted(r=2, num_experts=2), torch.randn(50, D_IN, requires_grad=True)
    with Wide(50) as forward:
        out = model(x)
    assert forward.names == ["addmm", "addmm_"]
    grad = torch.randn_like(out)
    with Wide(50) as backward:
        out.backward(grad)
    assert backward.names == ["mm", "addmm_", "addmm_"]


def tiny(method: Any) -> PeftModel:
    """One layer of LLaMA-2-7B with a fourth of each size, in bfloat16."""
    config = LlamaConfig(
        vocab_size=16, hidden_size=1024, intermediate_size=2752, num_attention_heads=8, num_hidden_layers=1
    )
    with torch.device("meta"):
        base = LlamaForCausalLM(config)
    base = base.bfloat16().to_empty(device="cpu").requires_grad_(False).train()
    for buffer in base.buffers():
        buffer.zero_()
    model = get_peft_model(base, method)
    model.enable_input_require_grads()
    return model


@pytest.mark.parametrize(("dropout", "share"), [(0.0, 0.85), (0.05, 0.70)])
def test_less_is_kept_than_by_a_lora_of_that_size(dropout: float, share: float, monkeypatch: Any) -> None:
    """TeamLoRA-32 against PEFT's LoRA-128, all sizes divided by four."""
    monkeypatch.setattr(bf16_products, "suits", lambda x: x.dtype == torch.bfloat16)
    targets: dict[str, Any] = {
        "target_modules": ["gate_proj", "up_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
    }
    lora = kept_bytes(tiny(LoraConfig(r=32, lora_dropout=dropout, **targets)), autocast=True)
    ours = kept_bytes(tiny(TeamLoraConfig(r=8, num_experts=4, dropout=dropout, **targets)), autocast=True)
    assert 0.6 * lora < ours <= share * lora


def test_a_product_that_autograd_keeps_is_not_kept_again() -> None:
    gate, up = (torch.randn(5, 8, requires_grad=True) for _ in range(2))
    silu = nn.functional.silu(gate)
    x = silu * up
    factors = kept_factors(x)
    assert factors is not None and torch.equal(factors[0] * factors[1], x)
    assert factors[0].data_ptr() == silu.data_ptr() and factors[1] is up
    others = [
        silu + up,
        silu * up[:1],
        silu * torch.ones(5, 8),  # which has no gradient, so that silu is not kept
        silu * up.double(),
        x.reshape(8, 5),
        x.detach(),
        x.clone().add_(1),
    ]
    assert [kept_factors(other) for other in others] == [None] * len(others)
    seen = []
    checkpoint(lambda: seen.append(kept_factors(silu * up)), use_reentrant=False)
    assert seen == [None]


def test_checkpointed_too() -> None:
    """The input of the last linear is a product; computed a second time, the gradients are the same."""
    torch.manual_seed(0)
    config = CONFIGS["teamlora"](target_modules=["0"], r=R, init="random", dropout=0.2, task_type=None)
    model = get_peft_model(nn.Sequential(nn.Linear(D_IN, D_OUT)), config).train()
    gate, up = (torch.randn(6, D_IN, requires_grad=True) for _ in range(2))

    def grads(call: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        out = call(lambda g, u: model(nn.functional.silu(g) * u), gate, up)
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.autograd.grad(out.square().sum(), [gate, up, *trained])

    once = grads(lambda f, *a: f(*a))
    again = grads(lambda f, *a: checkpoint(f, *a, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_a_second_derivative_is_refused() -> None:
    model, x = adapted(), torch.randn(4, D_IN, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()  # type: ignore[no-untyped-call]


def test_what_is_on_the_base_layer_is_heeded() -> None:
    """A hook, a weight that is trained, a forward pass of its own: then the layer is called."""
    model, x = adapted(), torch.randn(4, D_IN)
    base: Any = layer_of(model).base_layer
    plain = model(x).detach()
    handle = base.register_forward_hook(lambda module, args, output: output + 1)
    torch.testing.assert_close(model(x), plain + 1)
    handle.remove()
    forward = base.forward
    base.forward = lambda x: forward(x) + 2
    torch.testing.assert_close(model(x), plain + 2)
    del base.forward
    base.weight.requires_grad_(True)
    torch.testing.assert_close(model(x), plain)
    model(x).sum().backward()
    torch.testing.assert_close(base.weight.grad, x.sum(0).expand(D_OUT, D_IN))


def test_what_a_method_changes_is_computed_by_it() -> None:
    class Doubled(type(layer_of(adapted()))):  # type: ignore[misc]
        def weigh(self, logits: Tensor, adapter_name: str) -> Any:
            routing = super().weigh(logits, adapter_name)
            return routing._replace(omega=2 * routing.omega)

    torch.manual_seed(0)
    config = TeamLoraConfig(r=R, num_experts=K, init="random")
    layer = Doubled(nn.Linear(D_IN, D_OUT), "default", config)
    x = torch.randn(3, D_IN)
    doubled = layer.delta(x, "default")
    layer.__class__ = Doubled.__mro__[1]
    torch.testing.assert_close(doubled, 2 * layer.delta(x, "default"))


def test_compiled_whole() -> None:
    """Without dropout, whose numbers are torch's choice where it compiles."""
    model, x = adapted(dropout=0.0), torch.randn(2, 9, D_IN)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    outs = []
    for each in (model, compiled):
        torch.manual_seed(3)
        model.zero_grad()
        out = each(x)
        out.square().sum().backward()
        outs.append([out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(outs[0]) == 5
    for mine, theirs in zip(*outs, strict=True):
        torch.testing.assert_close(mine, theirs)
