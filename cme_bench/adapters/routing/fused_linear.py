"""A routed layer as one step of autograd: what is kept is z, phi and the input, or what that is made of.

    y = x W0 + b + gated B,  z = drop(x) A,  gated_i = scale omega_i z_i,  omega from x S in float32

Plain autograd keeps the latent several times, the gate in float32, the dropped input beside the input, and
passes over the wide output, and over the wide gradient of x, once more to add the adapter's. Here both are
added where they lie, as part of the products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cme_bench.adapters.routing.gate import GateSettings, gate, gate_backward
from cme_bench.adapters.routing.narrow import Drop, added, input_backward, narrow, summed, weights_backward
from cme_bench.adapters.routing.router import Routing
from cme_bench.adapters.shared.lowrank import autocast_off
from cme_bench.adapters.shared.recompute import kept_factors

Weights = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""A stored as (k r, d_in), or (r, d_in) where all experts share it; the B_i side by side, (d_out, k r); S
stored as (k, d_in), of which no bit is lost; M, (k, k), None for the identity."""


def fused_linear(
    x: Tensor,
    adapter: Weights,
    settings: GateSettings,
    *,
    base: tuple[Tensor, Tensor | None] | None = None,
    drop: Drop | None = None,
    seen: Tensor | None = None,
) -> tuple[Tensor, Routing]:
    """Return ``x W0 + b + scale * sum_i omega_i drop(x) A_i B_i``, (..., d_out), and the routing of x.

    Args:
        x: (..., d_in).
        adapter: Its weights.
        settings: Those of the gate.
        base: Frozen W0 stored as (d_out, d_in), and b, in the settings' dtype; None leaves both out.
        drop: What dropout multiplies x by before A, (..., d_in); None for nothing.
        seen: x after that, where it was computed already.
    """
    made_of = kept_factors(x) or (None, None)
    factor, times = drop or (None, 1.0)
    flat = [None if t is None else t.reshape(-1, t.shape[-1]) for t in (x, seen, factor, *made_of)]
    y, phi, omega, *_ = _FusedLinear.apply(*flat, *(base or (None, None)), *adapter, times, *settings)  # type: ignore[no-untyped-call]
    y, phi, omega = (part.reshape(*x.shape[:-1], part.shape[-1]) for part in (y, phi, omega))
    return y, Routing(phi, omega)


class _FusedLinear(torch.autograd.Function):
    """``fused_linear`` of (tokens, d_in); all may have a dimension of several adapters before that.

    z, and the weights as they are multiplied, are outputs because the backward pass needs them.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by position
        x: Tensor,
        seen: Tensor | None,
        factor: Tensor | None,
        left: Tensor | None,
        right: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        router: Tensor,
        interaction: Tensor | None,
        times: float,
        *settings: Any,
    ) -> tuple[Tensor | None, ...]:
        own = GateSettings(*settings)
        with autocast_off(x):
            if seen is None and factor is not None:
                seen = Drop(factor, times).of(x)
            found = narrow(x, seen, down, router, own.dtype)
            gated, z, phi, omega = gate(found, interaction, router.shape[-2], own)
            columns = up.to(own.dtype)
            y = added(_base(x, weight, bias), gated, columns.mT)
        made = zip((found.rows, columns, found.router_rows), (down, up, router), strict=True)
        # an input must not be an output: where nothing was cast, the parameter itself is kept
        return y, phi, omega, z, *(None if of is parameter else of for of, parameter in made)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        x, _, factor, left, right, weight, _, down, up, router, interaction, times, *settings = inputs
        _, phi, _, z, rows, columns, router_rows = output
        ctx.mark_non_differentiable(*(t for t in output[3:] if t is not None))
        if not torch.compiler.is_compiling():
            ctx.set_materialize_grads(False)
        rows, columns = down if rows is None else rows, up if columns is None else columns
        ctx.stacked = rows.shape[-2] != down.shape[-2]
        if router_rows is None and not ctx.stacked:
            router_rows = router
        ctx.settings, ctx.times = GateSettings(*settings), times
        ctx.sizes = (down.shape[-2], router.shape[-2])
        ctx.dtypes = x.dtype, down.dtype, up.dtype, router.dtype
        x = x if left is None else None
        ctx.save_for_backward(x, factor, left, right, weight, rows, columns, router_rows, interaction, z, phi)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        x, factor, left, right, weight, rows, columns, router_rows, interaction, z, phi = ctx.saved_tensors
        x_dtype, down_dtype, up_dtype, router_dtype = ctx.dtypes
        with autocast_off(z):
            grad = z.new_zeros(*z.shape[:-1], columns.shape[-2]) if grad is None else grad.to(z.dtype)
            grads, to_interaction, gated = gate_backward(
                grad @ columns, z, phi, interaction, (others[0], others[1]), router_rows, ctx.settings
            )
            to_up = summed(grad.mT, gated)
            x = left * right if x is None else x
            drop = None if factor is None else Drop(factor, ctx.times)
            seen = None if drop is None else drop.of(x)
            to_down, to_router = weights_backward(grads, x, seen, *ctx.sizes)
            del x, seen  # it may be the only one, and the gradient that follows is as large
            to_x = None
            if ctx.needs_input_grad[0]:
                to_x = None if weight is None else grad @ weight
                to_x = input_backward(grads, drop, rows, router_rows, to_x, x_dtype)
        if to_interaction is not None:
            to_interaction = to_interaction.to(interaction.dtype)
        adapter = to_down.to(down_dtype), to_up.to(up_dtype), to_router.to(router_dtype), to_interaction
        return to_x, None, None, None, None, None, None, *adapter, None, *(None for _ in ctx.settings)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, tuple[int | None, ...]]:
        stacked = [
            part
            if not isinstance(part, Tensor)
            else part.expand(info.batch_size, *part.shape)
            if dim is None
            else part.movedim(dim, 0)
            for part, dim in zip(inputs, in_dims, strict=True)
        ]
        outputs = _FusedLinear.apply(*stacked)  # type: ignore[no-untyped-call]
        return outputs, tuple(None if part is None else 0 for part in outputs)


def _base(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if weight is None or weight.ndim == 2:
        return None if weight is None else torch.nn.functional.linear(x, weight, bias)
    y = x @ weight.mT  # of several adapters, each with the weight given to it
    return y if bias is None else y.add_(bias.unsqueeze(-2))
