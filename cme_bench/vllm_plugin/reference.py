"""The adapter's update in plain torch operations: what runs on a CPU, and what every kernel must equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from cme_bench.vllm_plugin.spec import GatedSpec

Span = tuple[int, int, int]
"""(part, start, stop): output columns [start, stop) get the update of an adapter part."""


def shares(logits: Tensor, interaction: Tensor | None, spec: GatedSpec) -> Tensor:
    """Return ``scale * omega``, float32.

    Args:
        logits: (tokens, parts, k), ``x S`` of every part.
        interaction: M of every part, (parts, k, k); None for the identity.
    """
    omega = logits.float().softmax(dim=-1)
    if interaction is not None:
        omega = torch.einsum("tpj,pij->tpi", omega, interaction)
    if spec.normalizer_floor is not None:
        omega = omega / omega.sum(dim=-1, keepdim=True).clamp_min(spec.normalizer_floor)
    return omega * spec.scale


def gated_latent(z: Tensor, gate: Tensor | None, spec: GatedSpec) -> Tensor:
    """Return (tokens, parts, k r): every expert's latent times its share, rounded once to the dtype of ``z``.

    Args:
        z: (tokens, parts * latent), ``x A`` of every part.
        gate: (tokens, parts, k); None without a router, then the latent is only scaled.
    """
    experts = 1 if spec.shared_latent else spec.experts
    latent = z.reshape(len(z), -1, experts, spec.rank)
    gated = latent * (spec.scale if gate is None else gate.unsqueeze(-1))
    return gated.to(z.dtype).flatten(-2)


def has_halves(spans: Sequence[Span], d_out: int) -> bool:
    """Tell whether a layer is two parts of one size, of which each writes its half."""
    half = d_out // 2
    return tuple(spans) == ((0, 0, half), (1, half, 2 * half)) and 2 * half == d_out


def silu_and_mul(y: Tensor) -> Tensor:
    """Return silu of the first half of the columns times the second."""
    gate, up = y.chunk(2, dim=-1)
    return silu(gate) * up


def add_up(y: Tensor, gated: Tensor, up: Tensor, spans: Sequence[Span]) -> Tensor:
    """Return ``y`` (tokens, d_out) with the update added to the columns of every span.

    Args:
        gated: (tokens, parts, k r).
        up: (d_out, k r), B transposed.
    """
    pieces, done = [], 0
    for part, start, stop in spans:
        if start > done:
            pieces.append(y[:, done:start])
        pieces.append(y[:, start:stop] + linear(gated[:, part], up[start:stop]))
        done = stop
    if done < y.shape[1]:
        pieces.append(y[:, done:])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
