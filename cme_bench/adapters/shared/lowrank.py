"""The one product behind every method: a low-rank update whose intermediate is gated per token."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def autocast_on(x: Tensor) -> bool:
    """Return whether autocast is active for the device of ``x``."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def autocast_off(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which operations on the device of ``x`` keep their inputs' dtypes."""
    return torch.autocast(x.device.type, enabled=False) if autocast_on(x) else nullcontext()


def fitted(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x`` in the weight's dtype; as it is under autocast, which casts by itself."""
    return x if autocast_on(x) else x.to(weight.dtype)


def project(x: Tensor, weight: Tensor, *, cast_input: bool = True) -> Tensor:
    """Return ``x W``, W stored as (out, in), in the weight's dtype, or that of ``x`` if it must stay."""
    if not cast_input and not autocast_on(x):
        return nn.functional.linear(x, weight.to(x.dtype))
    return nn.functional.linear(fitted(x, weight), weight)


def gated_up(z: Tensor, up: Tensor, gate: Tensor, *, rank: int, latent_dropout: float = 0.0) -> Tensor:
    """Return ``sum_i gate_i (z_i B_i)``: one product for all experts, and nothing of full width for each of
    them.

    Gating z before the product is the same function as gating the k outputs, because the gate is one number
    for each token and expert. With z of k r columns slice i of z is expert i's latent (TeamLoRA; MoELoRA with
    its A_i side by side); with r columns all experts share one latent (HydraLoRA).

    Args:
        z: (..., k rank) or (..., rank), ``x A``.
        up: The B_i side by side, stored as (d_out, k rank).
        gate: (..., k), the factor on each expert, scaling included. The product with z is formed in the wider
            of the two dtypes and rounded once.
        rank: Rank of one expert.
        latent_dropout: Probability of dropping an element of the gated latent; 0 outside training.

    Returns:
        (..., d_out), in the dtype of ``up``, or autocast's.
    """
    experts = z.reshape(*z.shape[:-1], z.shape[-1] // rank, rank)
    gated = (experts * gate.unsqueeze(-1)).flatten(-2).to(z.dtype)
    if latent_dropout:
        gated = nn.functional.dropout(gated, latent_dropout)
    return project(gated, up)


def new_weight(rows: int, columns: int, base: nn.Linear) -> nn.Parameter:
    """Return a float32 parameter without values, on the device of ``base``."""
    return nn.Parameter(torch.empty(rows, columns, device=base.weight.device, dtype=torch.float32))
