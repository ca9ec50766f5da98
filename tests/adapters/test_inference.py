"""A routed layer without gradients is the plain formula in few operations, and leaves its base alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cme_bench.adapters.routing import bf16_products, inference
from cme_bench.adapters.routing.hooks import routing_hooks
from cme_bench.adapters.routing.layer import RoutedLinear
from cme_bench.util.exact_logits import exact_logits
from tests.support.adapter_cases import CONFIGS

D_IN, D_OUT, K, R = 40, 24, 3, 4
METHODS = ("teamlora", "moelora", "hydralora")
Asked = Callable[..., Tensor]


def adapted(method: str = "teamlora", dtype: torch.dtype = torch.float32, **fields: Any) -> PeftModel:
    """One linear with a frozen adapter, as one that was loaded."""
    torch.manual_seed(0)
    settings = {"r": R, "num_experts": K, "init": "random", "task_type": None, **fields}
    config = CONFIGS[method](target_modules=["0"], inference_mode=True, **settings)
    model = get_peft_model(nn.Sequential(nn.Linear(D_IN, D_OUT, dtype=dtype)), config)
    model = model.to(dtype) if dtype == torch.float64 else model
    return model.requires_grad_(False).eval()


def layer_of(model: PeftModel) -> RoutedLinear[Any]:
    return next(m for m in model.modules() if isinstance(m, RoutedLinear))


@torch.no_grad()
def asked(model: PeftModel, x: Tensor) -> Tensor:
    out: Tensor = model(x)
    return out


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The same layer by the plain formula."""

    def compute(model: PeftModel, x: Tensor) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(inference, "product_dtype", lambda *_: None)
            patch.setattr(inference.Matrices, "still", lambda *_: False)
            return asked(model, x)

    return compute


class Operations(TorchDispatchMode):
    """Names of the operations that compute something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_it_is_the_plain_formula(method: str, dtype: torch.dtype, error: float, plainly: Asked) -> None:
    model = adapted(method, dtype)
    for shape in ((), (7,), (0,), (2, 0), (2, 9), (2, 3, 4)):
        x = torch.randn(*shape, D_IN, dtype=dtype)
        torch.testing.assert_close(asked(model, x), plainly(model, x), rtol=error, atol=error)


@pytest.mark.parametrize(
    "fields",
    [
        {"normalize_omega": True},
        {"omega_times_k": True, "scaling": "alpha/(k*r)", "dropout": 0.2, "dropout_place": "latent"},
        {"competition": False},
    ],
)
def test_the_conventions(fields: dict[str, Any], plainly: Asked) -> None:
    model, x = adapted(**fields), torch.randn(3, 20, D_IN)
    torch.testing.assert_close(asked(model, x), plainly(model, x), rtol=1e-5, atol=1e-5)


def test_two_products_and_one_pass_over_the_output() -> None:
    model, x = adapted(), torch.randn(50, D_IN)
    asked(model, x)  # makes the matrices
    with Operations() as operations:
        asked(model, x)
    products = [name for name in operations.names if "mm" in name]
    assert products == ["addmm", "mm", "mm", "addmm_"]  # base, [A; S], M, B
    assert len(operations.names) <= 7


def test_dropout_is_drawn_where_a_model_trains() -> None:
    model, x = adapted(dropout=0.5).train(), torch.randn(9, D_IN)
    assert not torch.equal(asked(model, x), asked(model, x))


@pytest.mark.parametrize("change", ["written", "replaced", "another adapter", "copied"])
def test_a_changed_adapter_is_made_anew(change: str, plainly: Asked) -> None:
    model, x = adapted(), torch.randn(5, D_IN)
    before = asked(model, x)
    kept = layer_of(model)._matrices["default"]
    asked(model, x)
    assert layer_of(model)._matrices["default"] is kept
    if change == "copied":
        model = copy.deepcopy(model)
    layer = layer_of(model)
    with torch.no_grad():
        if change == "replaced":
            held: Any = layer.teamlora_down
            held["default"] = nn.Parameter(layer.held("down", "default") + 1, False)
        elif change == "another adapter":
            config = model.peft_config["default"]
            model.delete_adapter("default")
            assert not layer._matrices
            torch.manual_seed(5)
            model.add_adapter("default", config)
            model.set_adapter("default", inference_mode=True)
        else:
            layer.held("router", "default").add_(torch.randn(K, D_IN))
    after = asked(model, x)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, plainly(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["autocast", "traced"])
def test_kept_matrices_compute_nothing_that_is_asked_in_another_way(way: str, plainly: Asked) -> None:
    model, x = adapted(), torch.randn(5, D_IN)
    asked(model, x)
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        if way == "traced":
            found: list[Tensor] = [torch.vmap(lambda row: asked(model, row[None])[0])(x), plainly(model, x)]
        else:
            found = [asked(model, x), plainly(model, x)]
    assert found[0].dtype == found[1].dtype
    torch.testing.assert_close(*found)
    assert layer_of(model)._matrices["default"].still(x, *held(model))
    assert not layer_of(model)._matrices["default"].still(x.double(), *held(model))


def held(model: PeftModel) -> list[nn.Parameter]:
    return [layer_of(model).held(part, "default") for part in ("down", "up", "router")]


def test_matrices_of_a_trained_adapter_are_never_old() -> None:
    """An optimizer that is replayed as a graph writes without a trace; so does whoever writes to ``data``."""
    model, x = adapted(), torch.randn(5, D_IN)
    layer_of(model).held("down", "default").requires_grad_()
    before = asked(model, x)
    layer_of(model).held("down", "default").data.mul_(2)
    assert not torch.allclose(asked(model, x), before)


def test_the_base_is_left_alone_and_its_listeners_hear_its_own_output(plainly: Asked) -> None:
    model, x = adapted(), torch.randn(5, D_IN)
    base = layer_of(model).get_base_layer()
    weight, heard = base.weight.clone(), list[Tensor]()
    hook = base.register_forward_hook(lambda module, args, output: heard.append(output))
    got = asked(model, x)
    hook.remove()
    torch.testing.assert_close(got, plainly(model, x), rtol=1e-5, atol=1e-5)
    assert torch.equal(heard[0], nn.functional.linear(x, weight, base.bias))
    assert torch.equal(base.weight, weight) and base.weight.data_ptr() not in {
        matrix.data_ptr() for matrix in (layer_of(model)._matrices["default"].rows,)
    }


def test_routing_is_told_as_the_plain_formula_has_it(plainly: Asked) -> None:
    model, x = adapted(normalize_omega=True), torch.randn(2, 5, D_IN)
    heard: list[Any] = []
    with routing_hooks(model, heard.append):
        asked(model, x)
        plainly(model, x)
    for mine, theirs in zip(heard[0].routing, heard[1].routing, strict=True):
        assert mine.shape == (2, 5, K)
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_is_about_as_exact_as_the_plain_formula(
    method: str, plainly: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the update is as large as the base's output: A, B, z and the gated z are rounded too."""
    monkeypatch.setattr(bf16_products, "suits", lambda x: x.dtype == torch.bfloat16)
    model, x = adapted(method, torch.bfloat16), torch.randn(64, D_IN).bfloat16()
    got, rounded = asked(model, x), plainly(model, x)
    layer_of(model).base_layer.float()
    exactly = plainly(model, x.float())
    assert got.dtype == torch.bfloat16
    mine, theirs = ((way.float() - exactly).norm() for way in (got, rounded))
    assert mine <= 2.5 * theirs


def test_an_output_layer_that_keeps_float32_gets_the_update_in_float32(
    plainly: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bf16_products, "suits", lambda x: x.dtype == torch.bfloat16)
    model, x = adapted(dtype=torch.bfloat16), torch.randn(64, D_IN).bfloat16()
    layer = layer_of(model)
    model.get_base_model().get_output_embeddings = lambda: layer
    with exact_logits(model):
        got = asked(model, x)
    assert got.dtype == torch.float32
    layer.base_layer.float()
    torch.testing.assert_close(got, plainly(model, x.float()), rtol=0.05, atol=0.05)
    assert not torch.equal(got, got.bfloat16().float())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu(method: str, dtype: torch.dtype, plainly: Asked) -> None:
    """The kernels, at SmolLM2's sizes, against float64 on the CPU."""
    torch.manual_seed(0)
    config = CONFIGS[method](target_modules=["0"], r=32, num_experts=4, init="random", task_type=None)
    model = get_peft_model(nn.Sequential(nn.Linear(576, 1536)), config).requires_grad_(False).eval()
    x = torch.randn(300, 576).to(dtype)
    exactly = plainly(copy.deepcopy(model).double(), x.double())
    layer_of(model).base_layer.to(dtype)
    got = asked(model.cuda(), x.cuda()).cpu()
    assert got.dtype == dtype
    error = (got.double() - exactly).abs().max() / exactly.abs().max()
    assert error < (0.01 if dtype == torch.bfloat16 else 2e-6)
