"""The base models that are measured: a checkpoint's configuration or a preset, never their weights."""

from __future__ import annotations

import copy
from typing import Any

from transformers import LlamaConfig, PretrainedConfig

from cme_bench.adapters.shared.targets import default_targets
from cme_bench.experiments.efficiency.options import PRESETS, EfficiencyOptions
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import check_base, load_config
from cme_bench.util.errors import UsageError
from cme_bench.util.notes import Note, unheard

_SIZES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "llama-2-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 1024,
    },
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
}
_POSITIONS = 4096


def base_config(options: EfficiencyOptions, note: Note = unheard) -> PretrainedConfig:
    """Return the configuration that ``options`` name, with their number of layers. UsageError if its
    feed-forward layers are unknown."""
    if options.model in PRESETS:
        config: PretrainedConfig = preset(options.model)
    else:
        checkpoint = resolve_model(options.model, offline=options.offline, note=note)
        config = load_config(checkpoint)
        check_base(checkpoint, config)
    if default_targets(config.model_type) is None:
        raise UsageError(f"{options.model}: feed-forward layers of {config.model_type!r} are unknown")
    return with_layers(config, options.layers)


def preset(name: str) -> LlamaConfig:
    """Return a Llama of the preset's shapes."""
    return LlamaConfig(**_SIZES[name], max_position_embeddings=_POSITIONS)


def with_layers(config: PretrainedConfig, layers: int | None) -> PretrainedConfig:
    """Return the configuration with ``layers`` decoder layers; itself for None."""
    if layers is None:
        return config
    changed = copy.deepcopy(config)
    changed.num_hidden_layers = layers
    if getattr(changed, "layer_types", None):
        changed.layer_types = changed.layer_types[:layers]
    return changed


def targets(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the names of the feed-forward linears, which every method is put on."""
    names = default_targets(config.model_type)
    assert names is not None  # base_config has seen to it
    return names


def linear_sizes(config: PretrainedConfig) -> dict[str, tuple[int, int]]:
    """Return (d_in, d_out) of every adapted linear, by its full name in the causal language model."""
    from torch import nn

    from cme_bench.adapters.meta_model import bare_model

    return {
        name: (module.in_features, module.out_features)
        for name, module in bare_model(config).named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in targets(config)
    }
