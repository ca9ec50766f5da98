"""The latent and the router's logits from one reading of x, on bfloat16 matrix units, the logits exact.

A float32 router on bfloat16 activations is dear on a GPU: a float32 copy of x and a product off the matrix
units, forward and backward. But S is, up to 24 bits, the sum of three bfloat16 matrices, and products of
bfloat16 numbers are exact in float32. So ``x S = x S1 + x S2 + x S3``, summed in float32, is a float32
product: omega is within 2.1e-6 of float64's (float32 off the matrix units: 5e-7; S1 alone: 2e-3; one H200,
4,096 tokens, d_in 4096 and 11008). The 3k rows of S1, S2, S3 ride with those of A in one product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cme_bench.adapters.routing import gate_kernels
from cme_bench.adapters.shared.lowrank import autocast_off

PIECES = 3  # bfloat16 has 8 significant bits, float32 has 24
_ALIGNMENT = 16  # rows: with 140 instead of 144 the product takes four times as long (H200)


def suits(x: Tensor) -> bool:
    """Return whether this is the way to multiply ``x``: bfloat16 on CUDA."""
    return x.is_cuda and x.dtype == torch.bfloat16


def latent_and_logits(x: Tensor, down: Tensor, router: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(x A, x S)``: (..., w) in bfloat16, as under autocast, and (..., k) in float32.

    Args:
        x: (..., d_in), bfloat16.
        down: A stored as (w, d_in), rounded to bfloat16 here; w may be 0.
        router: S stored as (k, d_in), float32, of which no bit is lost.

    The gradient of S is as exact; that of x is rounded to bfloat16 as any other under autocast.
    """
    tokens = x.reshape(-1, x.shape[-1])
    z, logits, _ = _Products.apply(tokens, down, router)  # type: ignore[no-untyped-call]
    return z.reshape(*x.shape[:-1], len(down)), logits.reshape(*x.shape[:-1], len(router))


class _Products(torch.autograd.Function):
    """``latent_and_logits`` of (tokens, d_in), and the stacked weights, which the backward pass needs.

    All may have a dimension of several adapters before these; vmap gives them one.
    """

    @staticmethod
    def forward(x: Tensor, down: Tensor, router: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with autocast_off(x):
            weight = stack(down, router, dim=-2)
            out = product(x, weight.mT)
            z, logits = unstack(out, down.shape[-2], router.shape[-2], dim=-1)
            return z.to(x.dtype), logits, weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        x, down, router = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(x, output[2])
        ctx.down, ctx.router = (down.shape[-2], down.dtype), (router.shape[-2], router.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_z, grad_logits, _ = grads
        (width, down_dtype), (k, router_dtype) = ctx.down, ctx.router
        with autocast_off(x):
            grad = stack(grad_z, grad_logits, dim=-1)
            grad_x = grad @ weight if ctx.needs_input_grad[0] else None
            if not any(ctx.needs_input_grad[1:]):
                return grad_x, None, None
            grad_down, grad_router = unstack(product(grad.mT, x), width, k, dim=-2)
        return grad_x, grad_down.to(down_dtype), grad_router.to(router_dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Any, tuple[int, int, int]]:
        stacked = [
            part.expand(info.batch_size, *part.shape) if dim is None else part.movedim(dim, 0)
            for part, dim in zip(inputs, in_dims, strict=True)
        ]
        return _Products.apply(*stacked), (0, 0, 0)  # type: ignore[no-untyped-call]


def stack(rounded: Tensor, exact: Tensor, dim: int) -> Tensor:
    """Return bfloat16: ``rounded``, then the three pieces of ``exact``, then zeros up to the alignment."""
    if dim == -2 and gate_kernels.runs_on(exact):
        size = rounded.shape[-2] + PIECES * exact.shape[-2]
        return gate_kernels.stack(rounded, exact, size + -size % _ALIGNMENT, PIECES)
    pieces, rest = [], exact.float()
    for _ in range(PIECES):
        pieces.append(rest.bfloat16())
        rest = rest - pieces[-1]
    shape = list(exact.shape)
    shape[dim] = -(rounded.shape[dim] + PIECES * exact.shape[dim]) % _ALIGNMENT
    zeros = exact.new_zeros(shape, dtype=torch.bfloat16)
    return torch.cat([rounded.bfloat16(), *pieces, zeros], dim=dim)


def unstack(stacked: Tensor, width: int, k: int, dim: int) -> tuple[Tensor, Tensor]:
    """Return the first ``width`` entries along ``dim``, and the sum over the pieces of the ``k`` that
    follow."""
    first, pieces = stacked.narrow(dim, 0, width), stacked.narrow(dim, width, PIECES * k)
    return first, torch.stack(pieces.chunk(PIECES, dim)).sum(0)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a b`` of bfloat16 matrices, summed and kept in float32."""
    if a.is_cuda:
        multiply = torch.mm if a.ndim == 2 else torch.bmm
        return multiply(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
