"""A model with an adapter on the meta device: every shape, no memory, the real base untouched."""

from __future__ import annotations

import copy

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, get_peft_model_state_dict
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig


def bare_model(config: PretrainedConfig) -> nn.Module:
    """A causal language model of this configuration on the meta device."""
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    return model


def adapted(base: nn.Module, config: PeftConfig) -> PeftModel:
    """Puts a new adapter on a model from ``bare_model``, in place, without changing ``config``.

    Raises AdapterError (our methods) or ValueError (PEFT's) if the config does not fit the model.
    """
    config = copy.deepcopy(config)
    config.base_model_name_or_path = None  # else PEFT warns that this bare model has another name
    return get_peft_model(base, config, low_cpu_mem_usage=True)


def saved_shapes(model: PeftModel, adapter_name: str = "default") -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that ``save_pretrained`` would write for an adapter, by its name in the file."""
    tensors = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def base_parameters(model: PeftModel) -> int:
    """Number of parameters of the base model under the adapters; tied ones count once."""
    base = model.get_base_model()
    added: set[int] = set()
    for module in base.modules():
        kept = {BaseTunerLayer: "base_layer.", AuxiliaryTrainingWrapper: "original_module."}
        for wrapper, inside in kept.items():
            if isinstance(module, wrapper):
                added |= {id(p) for name, p in module.named_parameters() if not name.startswith(inside)}
    return sum(p.numel() for p in base.parameters() if id(p) not in added)
