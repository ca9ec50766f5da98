"""Which layers are linear: torch's own, and GPT-2's, which keeps its weight the other way round."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LINEARS = (nn.Linear, Conv1D)


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Return whether an adapter can be put on ``module``: a linear layer of torch, or GPT-2's ``Conv1D``."""
    return isinstance(module, LINEARS)


def features(linear: nn.Module) -> tuple[int, int]:
    """Return d_in and d_out of a linear layer; ``Conv1D`` stores its weight as (d_in, d_out)."""
    if isinstance(linear, Conv1D):
        d_in, d_out = linear.weight.shape
        return d_in, d_out
    return linear.in_features, linear.out_features  # type: ignore[return-value]  # ints in every subclass


def as_stored(linear: nn.Module, weight: Tensor) -> Tensor:
    """Return ``weight``, (d_out, d_in), the way round in which ``linear`` stores its own."""
    return weight.T if isinstance(linear, Conv1D) else weight
