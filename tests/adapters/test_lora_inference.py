"""PEFT's LoRA in the transformers engine: its product is added in place, and is what PEFT computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from cme_bench.adapters.shared.lora_inference import QuickLora

CONFIG: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 10,
    "target_modules": ["gate_proj", "down_proj", "q_proj"],
    "init_lora_weights": False,
    "lora_dropout": 0.5,
}
IDS = torch.arange(24).view(2, 12)


def adapted(base: LlamaForCausalLM, **changes: Any) -> PeftModel:
    torch.manual_seed(0)
    model: PeftModel = get_peft_model(copy.deepcopy(base), LoraConfig(**(CONFIG | changes))).eval()
    return model


def computed(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, int]:
    """The logits within the block, and how often PEFT's own forward of a LoRA was asked."""
    asked: list[int] = []
    own = LoraLinear.forward

    def counted(self: LoraLinear, *args: Any, **kwargs: Any) -> Tensor:
        asked.append(1)
        output: Tensor = own(self, *args, **kwargs)
        return output

    with monkeypatch.context() as patched:
        patched.setattr(LoraLinear, "forward", counted)
        with torch.no_grad(), QuickLora(model, None)():
            logits: Tensor = model(IDS).logits
    return logits, len(asked)


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_it_is_what_peft_computes_without_asking_it(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    model = adapted(tiny_model, **changes)
    with torch.no_grad():
        wanted = model(IDS).logits
    found, asked = computed(model, monkeypatch)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert asked == 0
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, wanted), "and afterwards as ever"
    assert not [module for module in model.modules() if "forward" in module.__dict__]


def doubled(model: PeftModel) -> None:
    def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return 2 * output

    for layer in model.modules():
        if isinstance(layer, LoraLinear):
            layer.lora_B["default"].register_forward_hook(double)


def two(model: PeftModel) -> None:
    model.add_adapter("other", LoraConfig(**(CONFIG | {"r": 2})))
    model.base_model.set_adapter(["default", "other"])


def narrow(model: PeftModel) -> None:
    for layer in model.modules():
        if isinstance(layer, LoraLinear):
            layer.lora_A.to(torch.bfloat16)
            layer.lora_B.to(torch.bfloat16)


def nothing(model: PeftModel) -> None:
    pass


@pytest.mark.parametrize(
    ("changes", "prepare"),
    [
        ({"use_dora": True}, nothing),
        ({"lora_bias": True}, nothing),
        ({}, doubled),
        ({}, two),
        ({}, narrow),
        ({}, lambda model: model.merge_adapter()),
        ({}, lambda model: model.base_model.disable_adapter_layers()),
    ],
    ids=["dora", "bias of B", "a hook", "two adapters", "other types", "merged", "disabled"],
)
def test_whatever_is_no_plain_lora_is_pefts(
    tiny_model: LlamaForCausalLM,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    prepare: Callable[[PeftModel], None],
) -> None:
    model = adapted(tiny_model, **changes)
    prepare(model)
    model.eval()
    with torch.no_grad():
        wanted = model(IDS).logits
    found, asked = computed(model, monkeypatch)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert asked > 0


def test_dropout_and_gradients_are_pefts(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(tiny_model)
    model.train()
    assert computed(model, monkeypatch)[1] > 0
    with QuickLora(model.eval(), None)():
        model(IDS).logits.sum().backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert grads
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)
