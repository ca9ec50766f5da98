"""A model with an adapter on the meta device: every shape, no memory, the real base untouched."""

from __future__ import annotations

import copy

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, get_peft_model_state_dict
from torch import nn
from transformers import PretrainedConfig

from cme_bench.util.auto_model import model_class
from cme_bench.util.building import BUILDING


def bare_model(config: PretrainedConfig) -> nn.Module:
    """Return a causal language model of this configuration on the meta device."""
    with BUILDING, torch.device("meta"):
        model: nn.Module = model_class(config).from_config(copy.deepcopy(config))
    return model


_kept: dict[tuple[type, str], nn.Module] = {}


def kept_model(config: PretrainedConfig) -> nn.Module:
    """Return what ``bare_model`` does, for those who change nothing of it: the last is kept for the next."""
    key = type(config), repr(config.to_dict())
    model = _kept.get(key)
    if model is None:
        model = bare_model(config)
        _kept.clear()
        _kept[key] = model
    return model


def adapted(base: nn.Module, config: PeftConfig) -> PeftModel:
    """Put a new adapter on a model from ``bare_model``, in place, without changing ``config``.

    Raises AdapterError (our methods) or ValueError (PEFT's) if the config does not fit the model.
    """
    config = copy.deepcopy(config)
    config.base_model_name_or_path = None  # else PEFT warns that this bare model has another name
    return get_peft_model(base, config, low_cpu_mem_usage=True)


def saved_shapes(model: PeftModel, adapter_name: str = "default") -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that ``save_pretrained`` would write for an adapter, by its name in the file.

    AdaLoRA writes only the ranks that its ``rank_pattern`` kept; PEFT selects them by value, which tensors on
    the meta device do not have, so their number is applied to the shapes here.
    """
    config = model.peft_config[adapter_name]
    kept = getattr(config, "rank_pattern", None) if config.peft_type == PeftType.ADALORA else None
    if kept:
        config.rank_pattern = None
    try:
        tensors = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    finally:
        if kept:
            config.rank_pattern = kept
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, mask in (kept or {}).items():
        layer = name.replace(f".{adapter_name}", "").removesuffix(".lora_E")
        rank = sum(map(bool, mask))
        for key, shape in shapes.items():
            if f".{layer}.lora_" in f".{key}":
                shapes[key] = (shape[0], rank) if key.endswith("lora_B") else (rank, *shape[1:])
    return shapes


def base_parameters(model: PeftModel) -> int:
    """Return the number of parameters of the base model under the adapters; tied ones count once.

    Quantised ones count as they were before: their packed tensors hold several numbers in one, or lie in
    buffers.
    """
    base = model.get_base_model()
    if getattr(base, "hf_quantizer", None) is not None:
        return sum(p.numel() for p in bare_model(base.config).parameters())
    added: set[int] = set()
    for module in base.modules():
        kept = {BaseTunerLayer: "base_layer.", AuxiliaryTrainingWrapper: "original_module."}
        for wrapper, inside in kept.items():
            if isinstance(module, wrapper):
                added |= {id(p) for name, p in module.named_parameters() if not name.startswith(inside)}
    return sum(p.numel() for p in base.parameters() if id(p) not in added)
