"""The GPU kernels of an adapter's routed layers, built before the adapter is there."""

from __future__ import annotations

import torch
from peft import PeftConfig
from torch import nn

from cme_bench.adapters.registry import method_of
from cme_bench.adapters.routing.layer import RoutedLinear

_SIDE, _TOKENS, _NAME = 64, 16, "default"


def build(config: PeftConfig, device: torch.device) -> None:
    """Build what a routed layer with the settings of ``config`` computes by, without gradients: the first
    time on a machine that takes seconds. Nothing is done for other methods.

    A layer of zeros is run once. No random number is drawn.
    """
    layer = _layer(config)
    if layer is not None:
        layer = layer.to_empty(device=device).requires_grad_(False).eval()
        with torch.inference_mode():
            for parameter in layer.parameters():
                parameter.zero_()
            layer(torch.zeros(_TOKENS, _SIDE, device=device))


def _layer(config: PeftConfig) -> nn.Module | None:
    """Return a small layer of an adapter's method, without memory; None if it is not routed."""
    method = method_of(config)
    kind = None if method is None else getattr(method.model_class, "tuner_layer_cls", None)
    if not (isinstance(kind, type) and issubclass(kind, RoutedLinear)):
        return None
    made: nn.Module = kind(nn.Linear(_SIDE, _SIDE, device="meta"), _NAME, config)
    return made
