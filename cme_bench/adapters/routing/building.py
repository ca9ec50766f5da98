"""The GPU kernels of an adapter's routed layers, built before the adapter is there."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from cme_bench.adapters.registry import method_of
from cme_bench.adapters.routing.layer import RoutedLinear

SIDE = 64
"""Numbers of each side of the layer."""
_TOKENS, _NAME = 16, "default"


def build(config: PeftConfig, device: torch.device) -> None:
    """Build what a routed layer with the settings of ``config`` computes by, without gradients: the first
    time on a machine that takes seconds. Nothing is done for other methods.

    A layer of zeros is run once. No random number is drawn.
    """
    layer = small_layer(config, device)
    if layer is not None:
        layer.requires_grad_(False).eval()
        with torch.inference_mode():
            layer(torch.zeros(_TOKENS, SIDE, device=device))


def is_routed(config: PeftConfig) -> bool:
    """Return whether layers of an adapter's method have experts behind a router."""
    return _kind(config) is not None


def small_layer(config: PeftConfig, device: torch.device) -> nn.Module | None:
    """Return a small layer of zeros of an adapter's method; None if it is not routed."""
    kind = _kind(config)
    if kind is None:
        return None
    made = kind(nn.Linear(SIDE, SIDE, device="meta"), _NAME, config).to_empty(device=device)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    return made


def _kind(config: PeftConfig) -> type[RoutedLinear[Any]] | None:
    method = method_of(config)
    kind = None if method is None else getattr(method.model_class, "tuner_layer_cls", None)
    return kind if isinstance(kind, type) and issubclass(kind, RoutedLinear) else None
