"""A layout of checkpoints, and what a checkpoint in it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from torch import Tensor

from cme_bench.adapters.imports.source import Source


@dataclass(frozen=True, slots=True)
class Converted:
    """An adapter of this package that computes what a checkpoint does.

    Attributes:
        config_class: Of the method.
        fields: Its fields, but where the adapter lies.
        modules: Full names of the adapted linears in the base model.
        tensors: By name in the base model, as :mod:`cme_bench.adapters` saves them, float32.
        scale: The factor on the update, in words and numbers.
        notes: Sentences that a user should see.
    """

    config_class: type[PeftConfig]
    fields: Mapping[str, Any]
    modules: Sequence[str]
    tensors: Mapping[str, Tensor]
    scale: str
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Given:
    """Settings of the user: ``alpha`` is lora_alpha, ``scaling`` how TeamLoRA's ``alpha / r`` reads."""

    alpha: float | None = None
    scaling: str | float | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout.

    Attributes:
        name: As ``--layout`` takes it.
        origin: Where its layer is written: repository and file.
        signs: Whether names of tensors (and the settings) are of this layout, from the names alone.
        convert: From a checkpoint to an adapter. Raises AdapterError for what is not exact.
    """

    name: str
    origin: str
    signs: Callable[[Sequence[str], Mapping[str, Any]], bool]
    convert: Callable[[Source, Given], Converted]
