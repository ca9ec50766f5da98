"""The form in which vLLM's plugin runs a routed method: nearly its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cme_bench.adapters.gated import Gate, GatedForm, Read
from cme_bench.adapters.routing.router import NORMALIZER_FLOOR

FUSED = "fused: experts side by side in two products"
"""How these layers compute, in words for a measurement."""
_PARTS = ("down", "up", "router", "interaction")


def routed_form(method: str, layer: type[Any], *, shared_latent: bool = False) -> GatedForm:
    """Return the form of a method whose layers are ``RoutedLinear`` and hold ``<method>_down`` and so on."""

    def gate(config: Any) -> Gate:
        return Gate(
            rank=config.r,
            experts=config.num_experts,
            scale=config.scale,
            shared_latent=shared_latent,
            interaction=getattr(config, "competition", False),
            normalizer_floor=NORMALIZER_FLOOR if getattr(config, "normalize_omega", False) else None,
        )

    def tensors(config: Any, adapted: Any, read: Read) -> dict[str, Tensor]:
        names = layer.shapes(config, adapted.in_features, adapted.out_features)
        return {part: read(f"{method}_{part}") for part in _PARTS if f"{method}_{part}" in names}

    return GatedForm(layer, tuple(f"{method}_{part}" for part in _PARTS), gate, tensors)
