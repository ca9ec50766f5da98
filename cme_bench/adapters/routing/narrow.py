"""The narrow products of a routed layer, x with A and with the router S, and their gradients.

Three ways: one product of bfloat16 with A and the three pieces of S (``bf16_products``); two, S in pieces
still, where dropout lets A see less than S; and two with S in float32 or wider. All may have a dimension of
several adapters before the others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cme_bench.adapters.routing import bf16_products, gate_kernels
from cme_bench.adapters.routing.bf16_products import PIECES, product, stack, unstack


class Narrow(NamedTuple):
    """z = drop(x) A, (tokens, w); the logits x S, (tokens, pieces k), a sum over pieces; A and S as they were
    multiplied.

    In one product z is not rounded yet, ``rows`` is [A; S1; S2; S3; 0], and ``router_rows`` is None.
    """

    z: Tensor
    logits: Tensor
    rows: Tensor
    router_rows: Tensor | None


class NarrowGrads(NamedTuple):
    """The gradients of z and of the logits. In one product both are ``z``: (tokens, [z, pieces of the logits,
    0]). In bfloat16 ``logits`` is (tokens, [pieces, 0])."""

    z: Tensor
    logits: Tensor | None


class Drop(NamedTuple):
    """Dropout of what A sees of x: ``factor`` times ``scale``, the factor in the shape of x."""

    factor: Tensor
    scale: float = 1.0

    def of(self, x: Tensor) -> Tensor:
        """Return ``x`` with its elements dropped, in its dtype."""
        kept = (x * self.factor).to(x.dtype)
        return kept if self.scale == 1.0 else kept * self.scale

    def add(self, total: Tensor, through: Tensor) -> Tensor:
        """Return ``total`` and what comes through the dropout; written over ``total``."""
        parts = (total, through, self.factor)
        ordered = self.factor.dtype == torch.bool and all(map(Tensor.is_contiguous, parts))
        if ordered and gate_kernels.runs_on(total):
            return gate_kernels.add_kept(*parts, self.scale)
        return total.addcmul_(through, self.factor, value=self.scale)


def narrow(x: Tensor, seen: Tensor | None, down: Tensor, router: Tensor, dtype: torch.dtype) -> Narrow:
    """Multiply x, (tokens, d_in), with A and S, stored as (w, d_in) and (k, d_in).

    ``seen``: what A sees of x, after dropout; None for all. ``dtype``: of the product with A; no bit of S is
    lost.
    """
    width, parts = down.shape[-2], PIECES * router.shape[-2]
    exact = bf16_products.suits(x) and router.dtype in {torch.float32, torch.bfloat16}
    if exact and seen is None and dtype == torch.bfloat16:
        rows = stack(down, router, dim=-2)
        out = product(x, rows.mT)
        return Narrow(out[..., :width], out[..., width : width + parts], rows, None)
    rows = down.to(dtype)
    z = (x if seen is None else seen).to(dtype) @ rows.mT
    if exact:
        router_rows = stack(router[..., :0, :], router, dim=-2)
        return Narrow(z, product(x, router_rows.mT)[..., :parts], rows, router_rows)
    router_rows = router.to(torch.promote_types(router.dtype, torch.float32))
    return Narrow(z, x.to(router_rows.dtype) @ router_rows.mT, rows, router_rows)


def weights_backward(
    grads: NarrowGrads, x: Tensor, seen: Tensor | None, width: int, k: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of A and S, (w, d_in) and (k, d_in), as wide as they were summed."""
    if grads.logits is None:
        return unstack(product(grads.z.mT, x), width, k, dim=-2)
    to_down = summed(grads.z.mT, (x if seen is None else seen).to(grads.z.dtype))
    if grads.logits.dtype == torch.bfloat16:
        return to_down, unstack(product(grads.logits.mT, x), 0, k, dim=-2)[1]
    return to_down, grads.logits.mT @ x.to(grads.logits.dtype)


def input_backward(  # noqa: PLR0917
    grads: NarrowGrads,
    drop: Drop | None,
    rows: Tensor,
    router_rows: Tensor | None,
    total: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return the gradient of x in ``dtype``, (tokens, d_in); ``total`` is added to it, and written over."""
    if drop is None:
        total = added(total, grads.z, rows)
    else:
        through = grads.z @ rows
        total = drop.of(through) if total is None else drop.add(total, through)
    if grads.logits is None or router_rows is None:
        return total.to(dtype)
    if grads.logits.dtype == total.dtype:
        return added(total, grads.logits, router_rows).to(dtype)
    return total.to(dtype).add_(grads.logits @ router_rows)


def added(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Return ``total + a b``, written over ``total``; ``a b`` where that is None."""
    if total is None:
        return a @ b
    return total.addmm_(a, b) if total.ndim == 2 else total.baddbmm_(a, b)


def summed(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a b``; that of bfloat16 matrices on a GPU in float32, in which it is summed."""
    return product(a, b) if a.is_cuda and a.dtype == torch.bfloat16 else a @ b
