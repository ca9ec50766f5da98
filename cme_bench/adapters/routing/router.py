"""The router: per-token expert weights, in float32 or wider whatever the model's precision."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cme_bench.adapters.routing import bf16_products
from cme_bench.adapters.shared.lowrank import autocast_off

NORMALIZER_FLOOR = 1e-2
"""Least divisor of the renormalisation. sum(omega) is 1 for M = I, yet it reaches 0 and turns negative once
the off-diagonals of M pass about -0.6 (k = 4); below the floor omega is divided by the floor."""


class Routing(NamedTuple):
    """The router's output for each token; both (..., k), float32 or wider.

    phi: softmax of the router's logits, sums to 1.
    omega: the experts' shares, M phi, renormalised if the method asks; equals phi where there is no M.
    """

    phi: Tensor
    omega: Tensor


def route(x: Tensor, router: Tensor, interaction: Tensor | None = None, normalize: bool = False) -> Routing:
    """Return phi = softmax(x S), omega = M phi (TeamLoRA, arXiv 2408.09856, "competition"); S stored as (k,
    d_in).

    ``x`` is (..., d_in) of any float dtype; for the rest see ``weigh``.
    """
    return weigh(router_logits(x, router), interaction, normalize)


def router_logits(x: Tensor, router: Tensor) -> Tensor:
    """Return ``x S`` in float32 or wider: (..., d_in) to (..., k). No bit of S (stored as (k, d_in)) is
    rounded.

    Autocast is off in here: under bfloat16 autocast alone omega would be wrong by up to 9e-3.
    """
    if bf16_products.suits(x) and router.dtype == torch.float32:
        return bf16_products.latent_and_logits(x, router[:0], router)[1]
    with autocast_off(x):
        dtype = torch.promote_types(router.dtype, torch.float32)
        if x.dtype == dtype:  # no copy is made, so none has to be kept out of the backward pass
            return nn.functional.linear(x, router.to(dtype))
        logits: Tensor = _Logits.apply(x, router.to(dtype))  # type: ignore[no-untyped-call]
    return logits


def weigh(logits: Tensor, interaction: Tensor | None = None, normalize: bool = False) -> Routing:
    """Return phi = softmax(logits), omega = M phi, with autocast off.

    Args:
        logits: (..., k), float32 or wider.
        interaction: M, (k, k), row i the influence of every phi_j on omega_i; None for the identity.
        normalize: Divide omega by its sum, which is clamped to at least ``NORMALIZER_FLOOR``.
    """
    with autocast_off(logits):
        phi = logits.softmax(dim=-1)
        omega = phi if interaction is None else nn.functional.linear(phi, interaction.to(phi.dtype))
        if normalize:
            omega = omega / omega.sum(dim=-1, keepdim=True).clamp_min(NORMALIZER_FLOOR)
    return Routing(phi, omega)


class _Logits(torch.autograd.Function):
    """``x.to(S.dtype) S`` that keeps x itself for the backward pass, not its full-width float32 copy."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, router: Tensor) -> Tensor:
        return nn.functional.linear(x.to(router.dtype), router)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, router = ctx.saved_tensors
        grad_x = grad_router = None
        with autocast_off(x):
            if ctx.needs_input_grad[0]:
                grad_x = (grad @ router).to(x.dtype)
            if ctx.needs_input_grad[1]:
                grad_router = grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1]).to(grad.dtype)
        return grad_x, grad_router
