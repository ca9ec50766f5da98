"""Which layers are linear: torch's own, GPT-2's, which keeps its weight the other way round, and quantised
ones."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers.pytorch_utils import Conv1D

from cme_bench.adapters.shared.quantised import is_quantised_linear
from cme_bench.util.exact_logits import SameNumbers, WideNumbers

LINEARS = (nn.Linear, Conv1D)
_OWN_NUMBERS = (type(None), SameNumbers)
"""What may stand in the place of a layer's forward without a change of what it returns."""


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Return whether an adapter can be put on ``module``: a linear layer of torch, GPT-2's ``Conv1D``, or a
    quantised one."""
    return isinstance(module, LINEARS) or is_quantised_linear(module)


def features(linear: nn.Module) -> tuple[int, int]:
    """Return d_in and d_out of a linear layer; ``Conv1D`` stores its weight as (d_in, d_out)."""
    if isinstance(linear, Conv1D):
        d_in, d_out = linear.weight.shape
        return d_in, d_out
    return linear.in_features, linear.out_features  # type: ignore[return-value]  # ints in every subclass


def as_stored(linear: nn.Module, weight: Tensor) -> Tensor:
    """Return ``weight``, (d_out, d_in), the way round in which ``linear`` stores its own."""
    return weight.T if isinstance(linear, Conv1D) else weight


def frozen_plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a layer is ``plain`` and frozen, so that a gradient of its weight is not asked for."""
    return plain(linear) and not any(p.requires_grad for p in linear.parameters())


def plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a layer is torch's own linear, on which nobody listens and nothing is replaced, so that
    ``forward``, or a product with its weight, is all that calling it does."""
    return (
        unheard(linear)
        and type(linear.weight) is nn.Parameter  # not torchao's, nor one that is spread over processes
        and isinstance(linear.__dict__.get("forward"), _OWN_NUMBERS)  # accelerate's move to other devices
    )


def returns_like(linear: nn.Module, x: Tensor) -> bool:
    """Return whether ``forward`` is all that calling torch's own linear layer does, and returns a new tensor
    in the type of ``x``."""
    if unheard(linear) and isinstance(linear.__dict__.get("forward"), WideNumbers):
        return x.dtype == torch.float32
    return plain(linear) and linear.weight.dtype == x.dtype


def unheard(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a layer is torch's own linear, to which nobody listens: what it returns is the
    caller's."""
    if type(linear) is not nn.Linear:
        return False
    own = linear.__dict__  # asked at every forward
    heard = (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
    return not heard
