"""A model that was lent comes back as it was, whatever happened to it meanwhile."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from cme_bench.models.fingerprint import difference, fingerprint
from cme_bench.models.preserved import preserved


def state(model: Any) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "attributes": [
            sorted((k, id(v)) for k, v in vars(module).items() if not isinstance(v, bool | int | float | str))
            for module in model.modules()
        ],
        "plain": [
            {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}
            for module in model.modules()
        ],
        "config": dict(vars(model.get_base_model().config)),
        "active": model.active_adapters,
        "off": model._adapters_disabled,
    }


def draws() -> list[Any]:
    return [random.random(), float(np.random.rand()), torch.rand(3).tolist()]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before(fails: bool, tiny_checkpoint: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    lora = {"r": 2, "target_modules": ["q_proj"], "lora_dropout": 0.1, "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(**lora))
    model.add_adapter("b", LoraConfig(**lora))
    model.train()
    model.base_model.model.lm_head.eval()
    base.config.use_cache = False
    base.gradient_checkpointing_enable()
    base.enable_input_require_grads()
    hooked = base.model.norm.register_forward_hook(lambda *_: None)
    before, print_ = state(model), fingerprint(model)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    wanted = draws()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    try:
        with torch.autocast("cpu", torch.bfloat16), preserved(model):
            assert not torch.is_autocast_enabled("cpu")
            model.eval()
            model.set_adapter("b")
            model.base_model.disable_adapter_layers()
            base.config.use_cache = True
            base.config._attn_implementation = "eager"
            base.model.rotary_emb.register_buffer("inv_freq", torch.zeros(3), persistent=False)
            base.model.rotary_emb.max_seq_len_cached = 99999
            hooked.remove()
            base.model.norm.register_forward_pre_hook(lambda *_: None)
            base.model.forward = lambda *_: None
            draws()
            assert not fails, "on purpose"
    except AssertionError as error:
        assert fails and "on purpose" in str(error)
    assert draws() == wanted
    assert state(model) == before
    assert difference(print_, fingerprint(model)) is None


def test_a_trainers_forward_is_taken_away_meanwhile(tiny_checkpoint: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    ids = torch.tensor([[1, 5, 7]])
    with torch.no_grad():
        plain = model(ids).logits
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model, evaluation_mode=True)
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, plain), "the trainer's autocast"
        with preserved(model):
            assert torch.equal(model(ids).logits, plain)
        assert not torch.equal(model(ids).logits, plain)
