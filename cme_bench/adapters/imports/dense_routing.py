"""HydraLoRA's and LoRAMoE's layers: experts behind a dense softmax router on every linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.imports.layers import Layer, one_of, sort_layers, split
from cme_bench.adapters.imports.layout import Converted, Given, Layout
from cme_bench.adapters.imports.settings import (
    LORA_FORK,
    anything,
    check_count,
    check_settings,
    dropout,
    scaled,
)
from cme_bench.adapters.imports.source import Source
from cme_bench.adapters.methods.hydralora import HydraLoraConfig
from cme_bench.adapters.methods.moelora import MoeLoraConfig
from cme_bench.adapters.registry import type_of

_SETTINGS = {**LORA_FORK, "lora_nums": anything}
_LOSS = ("blc_alpha", "blc_weight")
"""Settings of LoRAMoE's localised balance loss, which training alone computes."""


def _parts(keys: Sequence[str]) -> set[str]:
    """Return the parts of PEFT-like names; "lora_B#" for one with a number."""
    found = (split(key) for key in keys)
    return {pair[1].rstrip("0123456789") + "#" * pair[1][-1].isdigit() for pair in found if pair}


def _hydra_signs(keys: Sequence[str], settings: Mapping[str, Any]) -> bool:
    parts = _parts(keys)
    return {"lora_A", "lora_B#", "lora_route"} <= parts


def _moe_signs(keys: Sequence[str], settings: Mapping[str, Any]) -> bool:
    return "lora_A#" in _parts(keys)


def _hydra(source: Source, given: Given) -> Converted:
    """Return ``(alpha / r) sum_i g_i (x A) B_i``, ``g = softmax(x R)`` in float32, r the rank of A."""
    return _convert(source, given, "hydralora", ("lora_A", r"lora_B\d+", "lora_route"), _SETTINGS)


def _loramoe(source: Source, given: Given) -> Converted:
    """Return ``(alpha / r) sum_i g_i x A_i B_i``, ``g = softmax(x R)`` in float32, r the rank of one A_i."""
    settings = {**_SETTINGS, **dict.fromkeys(_LOSS, anything)}
    return _convert(source, given, "loramoe", (r"lora_A\d+", r"lora_B\d+", "lora_route"), settings)


def _convert(
    source: Source, given: Given, name: str, parts: tuple[str, ...], settings: Mapping[str, Any]
) -> Converted:
    layers = sort_layers(source.file, source.tensors, parts, name)
    check_settings(source, settings, name)
    shared = parts[0] == "lora_A"
    config_class = HydraLoraConfig if shared else MoeLoraConfig
    method = str(type_of(config_class).value).lower()
    converted: dict[str, Tensor] = {}
    sizes = {}
    for module, layer in layers.items():
        down, up, router = _side_by_side(layer, shared=shared)
        sizes[module] = (up.shape[1] // len(router), len(router))
        own = {"down": down, "up": up, "router": router}
        converted |= {f"{module}.{method}_{part}": tensor for part, tensor in own.items()}
    rank, experts = one_of(source.file, sizes, "rank or number of experts")
    check_count(source, "lora_nums", experts, "lora_B")
    found = scaled(source, source.settings, rank, alpha=given.alpha)
    fields = {
        "r": rank,
        "num_experts": experts,
        "alpha": found.alpha,
        "dropout": dropout(source.settings),
    }
    notes = tuple(
        f"{source.config}: {key} is of the training loss, which is not carried over"
        for key in _LOSS
        if source.settings.get(key)
    )
    of = "of the shared A" if shared else "of one expert"
    scale = f"{found.alpha / rank:g}, lora_alpha / r (r the rank {of})"
    return Converted(config_class, fields, tuple(layers), converted, scale, notes)


def _side_by_side(layer: Layer, *, shared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return A, or the A_i one under the other, the B_i side by side, and the router."""
    experts = max(layer.numbered("lora_B"), 0 if shared else layer.numbered("lora_A"))
    if experts < 2:
        raise AdapterError(f"{layer.where} has {experts} lora_B; a mixture has at least 2 experts")
    downs = ["lora_A"] if shared else [f"lora_A{i}" for i in range(experts)]
    ups = [f"lora_B{i}" for i in range(experts)]
    rank, d_in = layer.get(downs[0]).shape
    d_out = layer.get(ups[0]).shape[0]
    parts = layer.take(
        {
            **dict.fromkeys(downs, (rank, d_in)),
            **dict.fromkeys(ups, (d_out, rank)),
            "lora_route": (experts, d_in),
        }
    )
    down = torch.cat([parts[name] for name in downs])
    return down, torch.cat([parts[name] for name in ups], dim=1), parts["lora_route"]


HYDRALORA = Layout("hydralora", "Clin0212/HydraLoRA, HydraLoRA/peft/tuners/lora.py", _hydra_signs, _hydra)
LORAMOE = Layout("loramoe", "Ablustrund/LoRAMoE, peft/tuners/lora.py", _moe_signs, _loramoe)
