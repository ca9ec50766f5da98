"""The output layer in float32: plain, quantised in several ways, and where it cannot be had."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

pytestmark = [
    pytest.mark.slow,  # vLLM is imported
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

HIDDEN, VOCAB = 96, 640


class Int8:
    """A weight of 8 bits with a scale a row; answers in the input's dtype, as quantised kernels do."""

    def __init__(self, *, inputs_too: bool = False, broken: bool = False) -> None:
        torch.manual_seed(0)
        self.integers = torch.randint(-127, 128, (VOCAB, HIDDEN), dtype=torch.int8)
        self.scales = torch.rand(VOCAB, 1).add(0.5) / 64
        self.inputs_too, self.broken = inputs_too, broken

    @property
    def weight(self) -> Tensor:
        return self.integers.float() * self.scales

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.broken and len(x) > 1:
            raise ValueError("this kernel takes one row")
        wide = (x.float() * 4).round() / 4 if self.inputs_too else x.float()
        return linear(wide, self.weight, bias if bias is None else bias.float()).to(x.dtype)


class Model(nn.Module):
    """An output layer and vLLM's own processor of logits."""

    def __init__(self, method: Any, weight: Tensor | None, after: Callable[[Tensor], Tensor]) -> None:
        from vllm.model_executor.layers.logits_processor import LogitsProcessor

        super().__init__()
        self.lm_head: Any = nn.Module()
        self.lm_head.quant_method, self.lm_head.tp_size = method, 1
        if weight is not None:
            self.lm_head.weight = nn.Parameter(weight, requires_grad=False)
        self.logits_processor = LogitsProcessor(VOCAB, scale=0.5, soft_cap=30.0)
        self._after = after

    def compute_logits(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        logits: Tensor = self.logits_processor(self.lm_head, hidden, bias)
        return self._after(logits)


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What vLLM has set when it makes a model. On one rank there is nothing to gather."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers import logits_processor

    monkeypatch.setattr(logits_processor, "tensor_model_parallel_gather", lambda logits: logits)
    monkeypatch.setattr(logits_processor, "tensor_model_parallel_all_gather", lambda logits: logits)
    with set_current_vllm_config(VllmConfig()):
        yield


def plain(after: Callable[[Tensor], Tensor] = lambda logits: logits) -> Model:
    """In bfloat16, with logits of tens."""
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    torch.manual_seed(1)
    model = Model(UnquantizedEmbeddingMethod(), torch.randn(VOCAB, HIDDEN).bfloat16(), after)
    model.lm_head.quant_method.process_weights_after_loading(model.lm_head)
    return model


def states(rows: int = 5) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(rows, HIDDEN).bfloat16()


def expected(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """In float64, soft-capped and scaled as the model has it."""
    logits = states().double() @ weight.double().t() + (0 if bias is None else bias.double())
    return 0.5 * 30 * torch.tanh(logits / 30)


def test_a_plain_layer_with_and_without_a_bias() -> None:
    from cme_bench.vllm_plugin.output_layer import exact_from_now

    model, bias = plain(), torch.randn(VOCAB).bfloat16()
    assert model.compute_logits(states()).dtype == torch.bfloat16
    assert exact_from_now(model, states(1)) == exact_from_now(model, states(1)) == ""
    for b in (None, bias):
        logits = model.compute_logits(states(), b)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), expected(model.lm_head.weight, b), atol=1e-4, rtol=0)


def test_a_quantised_weight_is_multiplied_out() -> None:
    from cme_bench.vllm_plugin.output_layer import exact_from_now

    method = Int8()
    model = Model(method, None, lambda logits: logits)
    assert exact_from_now(model, states(1)) == ""
    logits = model.compute_logits(states())
    weight = method.weight.bfloat16()  # in the dtype of the model, as its kernel multiplies
    torch.testing.assert_close(logits.double(), expected(weight), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [{"inputs_too": True}, {"broken": True}], ids=["inputs", "broken"])
def test_a_quantised_layer_that_is_no_product_answers_itself_and_says_so(kind: dict[str, bool]) -> None:
    from cme_bench.vllm_plugin.output_layer import exact_from_now

    method = Int8(**kind)
    model = Model(method, None, lambda logits: logits)
    assert exact_from_now(model, states(1)) == "its output layer is quantised"
    for row in states():
        logits = model.compute_logits(row[None])
        own = method.apply(None, row[None]).float()
        torch.testing.assert_close(logits, 0.5 * 30 * torch.tanh(own / 30))


def test_a_model_that_rounds_later_is_found_out() -> None:
    from cme_bench.vllm_plugin.output_layer import exact_from_now

    roundings: list[Callable[[Tensor], Tensor]] = [Tensor.bfloat16, lambda logits: logits.bfloat16().float()]
    for after in roundings:
        assert "bfloat16" in exact_from_now(plain(after), states(1))


def test_a_model_with_a_product_of_its_own_is_found_out() -> None:
    from cme_bench.vllm_plugin.output_layer import exact_from_now

    model = plain()
    model.logits_processor.logits_as_input = True
    assert exact_from_now(model, states(1)) == "Model has an output layer of its own"


def test_a_model_whose_logits_cannot_be_had_stays_as_it_was() -> None:
    from cme_bench.vllm_plugin.output_layer import exact_from_now

    def fail(logits: Tensor) -> Tensor:
        raise KeyError("positions")

    model = plain(fail)
    assert exact_from_now(model, states(1)) == "KeyError ('positions')"
    logits = model.logits_processor(model.lm_head, states())
    assert logits.dtype == torch.bfloat16
