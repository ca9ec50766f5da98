"""Layers whose update is a product of two matrices, and which they are.

The scaling is multiplied into the second matrix, which is far smaller than what it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from peft.tuners.adalora import SVDLinear
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor

Factors = Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]
"""Parameters by name, [adapters, ...] -> down [adapters, r, d_in] and up [adapters, d_out, r]."""


@runtime_checkable
class LowRankLinear(Protocol):
    """An adapter's layer of ours that says so itself."""

    def low_rank(self, parameters: Mapping[str, Tensor], adapter_name: str) -> tuple[Tensor, Tensor]:
        """Return its two matrices."""
        ...


_KNOWN: dict[type, Callable[[Any], Factors | None]] = {}


def low_rank(layer: Any) -> Factors | None:
    """Return how a layer's update is made of two matrices; None if it is not, or not known to be."""
    if len(layer.active_adapters) != 1:
        return None
    (name,) = layer.active_adapters
    if isinstance(layer, LowRankLinear):
        ours = layer.low_rank
        return lambda parameters: ours(parameters, name)
    find = _KNOWN.get(type(layer))
    return None if find is None else find(layer)


def _lora(layer: LoraLinear) -> Factors | None:
    (name,) = layer.active_adapters
    if layer.lora_variant or layer.lora_bias.get(name) or name not in layer.lora_A:
        return None
    scaling = layer.scaling[name]
    return lambda p: (p[f"lora_A.{name}.weight"], p[f"lora_B.{name}.weight"] * scaling)


def _adalora(layer: SVDLinear) -> Factors | None:
    (name,) = layer.active_adapters

    def factors(p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        share = layer.scaling[name] / (layer.ranknum[name] + 1e-5)
        return p[f"lora_A.{name}"] * p[f"lora_E.{name}"], p[f"lora_B.{name}"] * share

    return factors


_KNOWN |= {LoraLinear: _lora, SVDLinear: _adalora}
