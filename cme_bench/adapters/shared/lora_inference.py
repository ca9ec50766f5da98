"""PEFT's LoRA on a linear layer without gradients: B's product is added where the base's output lies.

PEFT scales B's product and adds it in operations of their own, six passes over the wide output where this
takes two. The numbers are the same but for the order of rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from cme_bench.adapters.shared.linears import plain, returns_like
from cme_bench.adapters.shared.lowrank import autocast_on
from cme_bench.util.exact_logits import replaced


class QuickLora:
    """The LoRA layers of ``model`` but those in ``head``, and what they compute by within a block."""

    def __init__(self, model: nn.Module, head: nn.Module | None) -> None:
        others = set() if head is None else set(head.modules())
        layers = [
            layer for layer in model.modules() if layer not in others and "forward" not in layer.__dict__
        ]
        self._layers = [(layer, quick_forward(layer)) for layer in layers if type(layer) is LoraLinear]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Compute so within the context; the model is as it was afterwards."""
        with ExitStack() as stack:
            for layer, forward in self._layers:
                stack.enter_context(replaced(layer, forward))
            yield


def quick_forward(layer: nn.Module, own: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return what PEFT's LoRA on a linear layer computes by; any other layer's is its ``own`` forward."""
    own = layer.forward if own is None else own
    return functools.partial(_forward, layer, own) if type(layer) is LoraLinear else own


def _forward(layer: Any, own: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return what ``layer`` does by its ``own`` forward, which computes all that is not plain LoRA."""
    name = None if args or kwargs else _quick(layer, x)
    if name is None:
        return own(x, *args, **kwargs)
    base, down, up = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    y: Tensor = base.forward(x)
    latent = x.reshape(-1, x.shape[-1]) @ down.T
    y.view(-1, y.shape[-1]).addmm_(latent, up.T, alpha=layer.scaling[name])
    return y


def _quick(layer: Any, x: Tensor) -> str | None:
    """Return the adapter whose update is ``x A^T B^T`` times a factor and no more; None if there is none."""
    if torch.is_grad_enabled() or layer.disable_adapters or layer.merged or autocast_on(x):
        return None
    if len(layer.active_adapters) != 1 or (name := layer.active_adapters[0]) not in layer.lora_A:
        return None
    parts = (layer.lora_A[name], layer.lora_B[name])
    if name in layer.lora_variant or not all(map(plain, parts)) or not returns_like(layer.base_layer, x):
        return None
    dropping = layer.lora_dropout[name].training and not isinstance(layer.lora_dropout[name], nn.Identity)
    if dropping or any(part.bias is not None for part in parts):
        return None
    return name if {part.weight.dtype for part in parts} == {x.dtype} else None
