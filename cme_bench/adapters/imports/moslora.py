"""MoSLoRA's layer: a LoRA with a mixer ``lora_AB`` between its two factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cme_bench.adapters.imports.layers import one_of, sort_layers, split
from cme_bench.adapters.imports.layout import Converted, Given, Layout
from cme_bench.adapters.imports.settings import LORA_FORK, anything, check_settings, dropout, off, scaled
from cme_bench.adapters.imports.source import Source
from cme_bench.adapters.methods.moslora import MosLoraConfig

_SETTINGS = {
    **LORA_FORK,
    "lora_use_mixer": lambda value: value is None or value is True,
    # of the repository's two later forks, of PEFT 0.10
    "use_rslora": anything,
    "init_lora_weights": lambda value: value in (None, True, False, "gaussian"),
    **dict.fromkeys("layers_to_transform layers_pattern megatron_core".split(), anything),
    **dict.fromkeys(
        "use_dora rank_pattern alpha_pattern lora_use_mixer_pattern loftq_config megatron_config "
        "layer_replication".split(),
        off,
    ),
}


def _signs(keys: Sequence[str], settings: Mapping[str, Any]) -> bool:
    return any((found := split(key)) and found[1] == "lora_AB" for key in keys)


def _convert(source: Source, given: Given) -> Converted:
    """Return ``(alpha / r) x A W B``; alpha / sqrt(r) with use_rslora."""
    layers = sort_layers(source.file, source.tensors, ("lora_A", "lora_B", "lora_AB"), "moslora")
    check_settings(source, _SETTINGS, "moslora")
    converted: dict[str, Tensor] = {}
    sizes = {}
    for module, layer in layers.items():
        rank, d_in = layer.get("lora_A").shape
        d_out = layer.get("lora_B").shape[0]
        parts = layer.take({"lora_A": (rank, d_in), "lora_AB": (rank, rank), "lora_B": (d_out, rank)})
        sizes[module] = (rank,)
        own = {"down": parts["lora_A"], "mixer": parts["lora_AB"], "up": parts["lora_B"]}
        converted |= {f"{module}.moslora_{part}": tensor for part, tensor in own.items()}
    (rank,) = one_of(source.file, sizes, "rank")
    found = scaled(source, source.settings, rank, alpha=given.alpha)
    fields = {"r": rank, "alpha": found.alpha, "dropout": dropout(source.settings)}
    rule = "lora_alpha / sqrt(r)" if source.settings.get("use_rslora") else "lora_alpha / r"
    return Converted(MosLoraConfig, fields, tuple(layers), converted, f"{found.alpha / rank:g}, {rule}")


LAYOUT = Layout(
    "moslora",
    "wutaiqiang/MoSLoRA, commonsense_reasoning/peft/src/peft/tuners/lora.py and "
    "visual_instruction_tuning/peft/tuners/lora/layer.py",
    _signs,
    _convert,
)
