"""A first use of a model leaves nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM

from cme_bench.training.methods import adapter_config
from cme_bench.training.options import TrainOptions, method_names
from cme_bench.training.warm import use_once


@pytest.mark.parametrize(("method", "bf16"), [*((m, False) for m in method_names()), ("teamlora", True)])
def test_the_model_is_as_before(
    method: str, bf16: bool, options: Callable[..., TrainOptions], tiny_model: LlamaForCausalLM
) -> None:
    model = copy.deepcopy(tiny_model).requires_grad_(False)
    modules = {name: type(module) for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    use_once(model, adapter_config(options(method), model.config, steps=10), bf16=bf16)
    assert {name: type(module) for name, module in model.named_modules()} == modules
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not hasattr(model, "peft_config")
