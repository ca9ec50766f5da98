"""Our methods as rows of PEFT's parameter lists, and tiny models in place of those that its tests fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.support.adapter_cases import CONFIGS, ON_LINEARS

Fields = dict[str, Any]
LAYERS: tuple[tuple[str, str, Fields], ...] = (
    ("MLP 1", "MLP", {"target_modules": "lin0"}),
    ("MLP 2", "MLP", {"target_modules": ["lin0"]}),
    ("MLP 3", "MLP", {"target_modules": ["lin1"]}),
    ("MLP 4", "MLP", {"target_modules": ["lin0", "lin1"]}),
    ("MLP 5", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("MLP 6", "MLP", {"target_modules": ["lin0"], "alpha": 4.0, "dropout": 0.1}),
    ("MLP 7", "MLP", {"target_modules": "all-linear", "exclude_modules": ["lin1"]}),
    ("Conv1D", "EmbConv1D", {"target_modules": ["conv1d"], "alpha": 8.0}),
)
"""Name, PEFT's name of the model, fields."""
_START: Fields = {"r": 8, "alpha": 1.0}
"""PEFT's tests train with a learning rate of 0.5, at which other scales than LoRA's own diverge."""
OWN: dict[str, tuple[Fields, ...]] = {
    "teamlora": (
        {"scaling": "alpha/(k*r)", "normalize_omega": True, "omega_times_k": True, "dropout_place": "latent"},
        {"competition": False},
    ),
    "moslora": ({"mixer_init": "orthogonal"},),
}
"""Further forms of a method, by fields."""


def custom_cases() -> list[tuple[str, str, type, Fields]]:
    """Return rows for ``TEST_CASES``: name, model, class of the config, its fields."""
    rows = [
        (f"{name} {m}", model, CONFIGS[m], _START | fields)
        for m in ON_LINEARS
        for name, model, fields in LAYERS
    ]
    for method, forms in OWN.items():
        for number, form in enumerate(forms, start=1):
            fields = {"target_modules": ["lin0"], **_START, **form}
            rows.append((f"own {number} {method}", "MLP", CONFIGS[method], fields))
    return rows


def active_cases() -> list[tuple[str, str, type, Fields, Fields]]:
    """Return rows for ``MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES``: the same layer twice, and one layer each."""
    rows = []
    for method in ON_LINEARS:
        for name, second in (("Same", "lin0"), ("Different", "lin1")):
            one, two = ({"target_modules": [layer], "init": "random"} for layer in ("lin0", second))
            rows.append((f"{method} {name}", method, CONFIGS[method], one, two))
    return rows


def mixed_cases() -> list[tuple[str, Any, Any]]:
    """Return rows for ``MIXED_ADAPTER_TEST_CASES``: two configs of different rank."""
    return [
        (
            f"{method} mixed adapter",
            CONFIGS[method](target_modules=["lin0"], init="random"),
            CONFIGS[method](target_modules=["lin0"], init="random", r=3),
        )
        for method in ON_LINEARS
    ]


def model_cases(task: str, **fields: Any) -> list[tuple[type, Fields]]:
    """Return rows for the ``ALL_CONFIGS`` of a task: class of the config, its fields."""
    return [(config, {"task_type": task, "r": 2, **fields}) for config in CONFIGS.values()]


_SIZES = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


def tiny_models(folder: Path) -> dict[str, Path]:
    """Save tiny random models below ``folder``; return their folders by kind, each made once."""
    made = {name: folder / f"tiny-{name}" for name in _MODELS}
    for name, place in made.items():
        if not (place / "config.json").exists():
            torch.manual_seed(0)
            _MODELS[name]().save_pretrained(place)
    return made


def _llama() -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**_SIZES, **sizes, initializer_range=0.3))


def _gpt2() -> PreTrainedModel:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**_SIZES, **sizes, initializer_range=0.3))


def _t5() -> PreTrainedModel:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    ids = {"vocab_size": 64, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**ids, **sizes, initializer_factor=3.0))


def _bert() -> BertConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertConfig(vocab_size=64, **sizes, max_position_embeddings=64, initializer_range=0.3)


_MODELS = {
    "llama": _llama,
    "gpt2": _gpt2,
    "t5": _t5,
    "bert": lambda: BertModel(_bert()),
    "bert-classifier": lambda: BertForSequenceClassification(_bert()),
}
