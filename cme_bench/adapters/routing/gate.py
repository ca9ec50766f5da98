"""The gate between the two products of a routed layer, forward and backward, written out.

    phi = softmax(logits), u = M phi, omega = u or u / max(sum u, floor), gated_i = scale omega_i z_i

All tensors may have a dimension of several adapters before (tokens, ...). On a GPU the same is computed by
one kernel each way (``gate_kernels``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cme_bench.adapters.routing import gate_kernels
from cme_bench.adapters.routing.bf16_products import PIECES, stack
from cme_bench.adapters.routing.narrow import Narrow, NarrowGrads
from cme_bench.adapters.routing.router import NORMALIZER_FLOOR


class GateSettings(NamedTuple):
    """``rank``: of one expert. ``scale``: factor on every omega in the gated latent. ``normalize``: whether
    omega is divided by its sum. ``dtype``: of z and of what goes into products."""

    rank: int
    scale: float
    normalize: bool
    dtype: torch.dtype

    @property
    def floor(self) -> float | None:
        """Least divisor of omega; None where it is not divided."""
        return NORMALIZER_FLOOR if self.normalize else None


class Gated(NamedTuple):
    """``gated`` (tokens, k r) and ``z`` in the products' dtype; phi and omega (tokens, k), float32 or
    wider."""

    gated: Tensor
    z: Tensor
    phi: Tensor
    omega: Tensor


class GateGrads(NamedTuple):
    """Gradients of the narrow products, as these take them, and of M, if there is one; and ``gated``,
    computed a second time."""

    narrow: NarrowGrads
    interaction: Tensor | None
    gated: Tensor


def gate(
    found: Narrow, interaction: Tensor | None, k: int, settings: GateSettings, *, columns: int | None = None
) -> Gated:
    """Return the gated latent and the routing. ``interaction``: M, (k, k); None for the identity.

    ``columns``: of the matrix whose first ones are those of z and of the logits, of a gate without gradients,
    which need not give z back; None for any other.
    """
    logits = found.logits
    if _by_kernel(found, interaction is not None, k, settings, columns):
        return Gated(
            *gate_kernels.gate(
                found.z,
                logits,
                interaction,
                k,
                rank=settings.rank,
                scale=settings.scale,
                floor=settings.floor,
                dtype=settings.dtype,
                for_backward=columns is None,
            )
        )
    if logits.shape[-1] != k:
        logits = _split(logits, k).sum(-2)
    phi = logits.softmax(dim=-1)
    omega, _ = _shares(phi, interaction, settings.normalize)
    z = found.z.to(settings.dtype)
    return Gated(_spread(z, omega * settings.scale, settings.rank), z, phi, omega)


def _by_kernel(found: Narrow, mixed: bool, k: int, settings: GateSettings, columns: int | None) -> bool:
    if columns is None:
        return gate_kernels.suits(found.z, found.logits, k, settings.rank)
    form = gate_kernels.Form(
        k=k,
        rank=settings.rank,
        width=found.z.shape[-1],
        pieces=found.logits.shape[-1] // k,
        columns=columns,
        mixed=mixed,
        divided=settings.normalize,
        found=found.z.dtype,
        dtype=settings.dtype,
    )
    return gate_kernels.infers(found.z, form)


def gate_backward(  # noqa: PLR0917
    grad: Tensor,
    z: Tensor,
    phi: Tensor,
    interaction: Tensor | None,
    of_routing: tuple[Tensor | None, Tensor | None],
    router_rows: Tensor | None,
    settings: GateSettings,
) -> GateGrads:
    """Return the gradients of the gate's inputs. ``grad``: that of the gated latent. ``of_routing``: those of
    phi and omega, from losses on them. ``router_rows``: as in ``Narrow``."""
    if gate_kernels.suits(z, phi, phi.shape[-1], settings.rank):
        in_pieces = router_rows is None or router_rows.dtype == torch.bfloat16
        to_z, to_logits, to_interaction, gated = gate_kernels.gate_backward(
            grad,
            z,
            phi,
            interaction,
            *of_routing,
            rank=settings.rank,
            scale=settings.scale,
            floor=settings.floor,
            pieces=PIECES if in_pieces else 0,
            stacked=router_rows is None,
        )
        narrow = NarrowGrads(to_z, None if router_rows is None else to_logits)
        return GateGrads(narrow, to_interaction, gated)
    omega, divisor = _shares(phi, interaction, settings.normalize)
    weights = omega * settings.scale
    wide = _split(grad, settings.rank).to(phi.dtype)
    experts = _split(z, settings.rank)
    to_omega = (wide * experts).sum(-1) * settings.scale
    to_z = wide * weights.unsqueeze(-1)
    if experts.shape[-2] != wide.shape[-2]:  # one latent for all experts
        to_z = to_z.sum(-2, keepdim=True)
    grad_phi, grad_omega = of_routing
    if grad_omega is not None:
        to_omega = to_omega + grad_omega
    if divisor is not None:
        of_sum = (to_omega * omega).sum(-1, keepdim=True) * (divisor > NORMALIZER_FLOOR)
        to_omega = (to_omega - of_sum) / divisor
    to_phi, to_interaction = to_omega, None
    if interaction is not None:
        to_phi = to_omega @ interaction.to(phi.dtype)
        to_interaction = to_omega.mT @ phi
    if grad_phi is not None:
        to_phi = to_phi + grad_phi
    to_logits = torch._softmax_backward_data(to_phi, phi, -1, phi.dtype)
    narrow = _as_taken(to_z.flatten(-2).to(z.dtype), to_logits, router_rows)
    return GateGrads(narrow, to_interaction, _spread(z, weights, settings.rank))


def _as_taken(to_z: Tensor, to_logits: Tensor, router_rows: Tensor | None) -> NarrowGrads:
    if router_rows is None:
        return NarrowGrads(stack(to_z, to_logits, dim=-1), None)
    if router_rows.dtype == torch.bfloat16:
        return NarrowGrads(to_z, stack(to_z[..., :0], to_logits, dim=-1))
    return NarrowGrads(to_z, to_logits)


def _shares(phi: Tensor, interaction: Tensor | None, normalize: bool) -> tuple[Tensor, Any]:
    """Return omega; and what it was divided by, None for nothing."""
    omega = phi if interaction is None else phi @ interaction.to(phi.dtype).mT
    if not normalize:
        return omega, None
    divisor = omega.sum(dim=-1, keepdim=True).clamp_min(NORMALIZER_FLOOR)
    return omega / divisor, divisor


def _spread(z: Tensor, weights: Tensor, rank: int) -> Tensor:
    """Return every expert's latent times its weight, side by side; formed in the wider dtype, rounded
    once."""
    return (_split(z, rank) * weights.unsqueeze(-1)).flatten(-2).to(z.dtype)


def _split(wide: Tensor, size: int) -> Tensor:
    """Return (..., n size) as (..., n, size)."""
    return wide.reshape(*wide.shape[:-1], wide.shape[-1] // size, size)
