"""TeamLoRA's layer as its authors published it on 2024-08-19, and withdrew it a day later."""

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
from cme_bench.adapters.methods.teamlora import PRESETS, TeamLoraConfig
from cme_bench.adapters.shared.config import rank_per_expert

NAME = "teamlora-2024-08"
_PARTS = ("lora_A", r"lora_B\d+", r"lora_route\.fc", "lora_interaction_matrix")
_SETTINGS = {**LORA_FORK, **dict.fromkeys("lora_nums blc_alpha blc_weight".split(), anything)}


def _signs(keys: Sequence[str], settings: Mapping[str, Any]) -> bool:
    return any((found := split(key)) and found[1] == "lora_interaction_matrix" for key in keys)


def _convert(source: Source, given: Given) -> Converted:
    """Return what the authors' layer computes: ``omega = phi + phi M0``, renormalised, times k; ``(alpha / r)
    sum_i omega_i z_i B_i``, r the rank of all experts together.

    Hence our ``M = I + M0^T``, rank r / k for each expert, and the preset "authors-2024-08".
    """
    layers = sort_layers(source.file, source.tensors, _PARTS, NAME)
    check_settings(source, _SETTINGS, NAME)
    converted: dict[str, Tensor] = {}
    sizes = {}
    for module, layer in layers.items():
        tensors, sizes[module] = _convert_layer(layer)
        converted |= {f"{module}.{name}": tensor for name, tensor in tensors.items()}
    rank, experts = one_of(source.file, sizes, "rank or number of experts")
    check_count(source, "lora_nums", experts, "lora_B")
    alpha = scaled(source, source.settings, rank * experts, alpha=given.alpha).alpha
    fields: dict[str, Any] = {
        **PRESETS["authors-2024-08"],
        "r": rank,
        "num_experts": experts,
        "alpha": alpha,
        "scaling": "alpha/(k*r)" if given.scaling is None else given.scaling,
        "dropout": dropout(source.settings),
    }
    factor = TeamLoraConfig(**fields).scale
    scale = f"{factor:g}, lora_alpha / r times the number of experts (r the rank of all of them together)"
    return Converted(TeamLoraConfig, fields, tuple(layers), converted, scale)


def _convert_layer(layer: Layer) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Return one layer's tensors under our names, with (rank of one expert, number of experts)."""
    experts = layer.numbered("lora_B")
    if experts < 2:
        raise AdapterError(f"{layer.where} has {experts} lora_B; TeamLoRA has at least 2 experts")
    ups = [f"lora_B{i}" for i in range(experts)]
    total, d_in = layer.get("lora_A").shape
    try:
        rank = rank_per_expert(total, experts)
    except AdapterError as error:
        raise AdapterError(f"{layer.where}.lora_A: {error}") from None
    d_out = layer.get("lora_B0").shape[0]
    parts = layer.take(
        {
            "lora_A": (total, d_in),
            "lora_route.fc": (experts, d_in),
            "lora_interaction_matrix": (experts, experts),
            **dict.fromkeys(ups, (d_out, rank)),
        }
    )
    return {
        "teamlora_down": parts["lora_A"],
        "teamlora_up": torch.cat([parts[up] for up in ups], dim=1),
        "teamlora_router": parts["lora_route.fc"],
        "teamlora_interaction": torch.eye(experts) + parts["lora_interaction_matrix"].T,
    }, (rank, experts)


LAYOUT = Layout(NAME, "the authors' layer of TeamLoRA, published 2024-08-19", _signs, _convert)
