"""How a method takes the one form that vLLM's plugin runs, ``scale * sum_i omega_i z_i B_i``.

The formula is in :mod:`cme_bench.vllm_plugin.spec`. A method that has this form needs no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Allowed = Callable[[Any], bool]
"""Whether the plugin computes a method exactly with this value of a field."""
Read = Callable[[str], Tensor]
"""The tensor of a layer that is saved under this name, such as "lora_A.weight"."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The settings that all layers of an adapter share.

    Attributes:
        rank: r, the rank of one expert.
        experts: k; 1 has no router.
        scale: The factor on the sum.
        shared_latent: The experts share one latent: A has r columns, not k r.
        interaction: There is an interaction matrix M, so omega = M phi.
        normalizer_floor: omega is divided by its sum, clamped to at least this; None for no division.
    """

    rank: int
    experts: int = 1
    scale: float = 1.0
    shared_latent: bool = False
    interaction: bool = False
    normalizer_floor: float | None = None


@dataclass(frozen=True, slots=True)
class GatedForm:
    """A method's way to the plugin's form.

    Attributes:
        layer: The class of PEFT's layers on adapted linears.
        stored: Names under which the tensors of a layer may be saved.
        gate: From a config to its gate.
        tensors: From a config, one of its layers and what reads a saved tensor to the plugin's tensors:
            "down" (A transposed), "up" (B transposed), and with experts "router" (S transposed) and
            "interaction" (M). Without experts, ``up down`` is the whole update, scaling included, and ranks
            may differ from layer to layer.
        fields: Settings that are computed exactly, and with which values. None for every field that the
            method's own config class has. Those that say where the adapter lies are allowed in any case.
    """

    layer: type[Any]
    stored: tuple[str, ...]
    gate: Callable[[Any], Gate]
    tensors: Callable[[Any, Any, Read], Mapping[str, Tensor]]
    fields: Mapping[str, Allowed] | None = None


def any_value(value: Any) -> bool:
    """Return whether the field may have this value: it decides nothing, or the tensors and PEFT's layers show
    it."""
    return True


def none_named(value: Any) -> bool:
    """Return whether a field that names further layers or weights names none."""
    return value is None or value == []
