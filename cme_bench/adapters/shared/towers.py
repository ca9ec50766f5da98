"""Which part of a vision-language model adapters are put on: its language model, and no tower of images."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from cme_bench.util.auto_model import sees

_ALIKE = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
"""Language models that have the layers of another type, by name."""


def language_path(model: Any) -> str | None:
    """Return the name of the language model inside a vision-language model; None in a model of text alone."""
    config = getattr(model, "config", None)
    if config is None or not sees(config):
        return None
    embedding = model.get_input_embeddings()
    parts: Iterable[tuple[str, nn.Module]] = model.named_modules()
    for name, module in parts:
        if any(child is embedding for child in module.children()):
            return name
    return None


def outside_language(model: Any) -> str | None:
    """Return PEFT's ``exclude_modules`` for all but the language model; None in a model of text alone."""
    path = language_path(model)
    return None if path is None else rf"(?!{re.escape(path)}\.).*"


def language_type(config: Any) -> str:
    """Return ``model_type`` of the language model of a configuration, by which targets are known."""
    kind = str(config.get_text_config(decoder=True).model_type if sees(config) else config.model_type)
    return _ALIKE.get(kind, kind)


def language_parameters(model: Any) -> int | None:
    """Return the parameters of the language model inside a vision-language model, with its output layer,
    tied ones once; None in a model of text alone. The model has no adapter."""
    path = language_path(model)
    if path is None:
        return None
    head = model.get_output_embeddings()
    parts: list[nn.Module] = [model.get_submodule(path), *([] if head is None else [head])]
    return sum(p.numel() for p in {id(p): p for part in parts for p in part.parameters()}.values())
