"""A linear layer of the base and the updates of many adapters as one step of autograd.

    y = x W + b, and for the rows of every adapter  y += what its layer adds

The base's product is made once. Each update is added where its rows lie, as part of a product, and so is each
gradient of x: nothing of full width is cut, joined or copied for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cme_bench.adapters.routing.gate import GateSettings, gate, gate_backward
from cme_bench.adapters.routing.narrow import Drop, added, input_backward, narrow, summed, weights_backward
from cme_bench.adapters.routing.router import Routing
from cme_bench.adapters.shared.lowrank import autocast_off

Kept = tuple[Tensor | None, ...]
"""What the backward pass of an update needs."""


class Update(Protocol):
    """An update by ``count`` weights, each [adapters, ...]; x, y and gradients are [adapters, tokens, d].

    ``reads_all``: whether it reads x itself too, beside x after dropout.
    """

    @property
    def count(self) -> int: ...
    @property
    def reads_all(self) -> bool: ...

    def add(self, x: Tensor, seen: Tensor, y: Tensor, weights: Sequence[Tensor | None]) -> Kept:
        """Add the update to ``y``; ``seen`` is x after dropout. Of what is returned the first two are phi and
        omega, or None."""
        ...

    def backward(
        self, grad: Tensor, others: tuple[Tensor | None, Tensor | None], given: Given, to_x: Tensor | None
    ) -> list[Tensor | None]:
        """Return the weights' gradients; add that of x to ``to_x``. ``others``: of phi and omega."""
        ...


class Given(NamedTuple):
    """An update's inputs, and what it kept."""

    x: Tensor
    seen: Tensor
    drop: Drop | None
    weights: Sequence[Tensor | None]
    kept: Kept


class LowRank:
    """``seen down^T up^T``, of down [adapters, r, d_in] and up [adapters, d_out, r]."""

    count, reads_all = 2, False

    def add(self, x: Tensor, seen: Tensor, y: Tensor, weights: Sequence[Tensor | None]) -> Kept:
        rows, columns = (w.to(y.dtype) for w in weights if w is not None)
        z = torch.bmm(seen, rows.mT)
        y.baddbmm_(z, columns.mT)
        return None, None, z, rows, columns

    def backward(
        self, grad: Tensor, others: tuple[Tensor | None, Tensor | None], given: Given, to_x: Tensor | None
    ) -> list[Tensor | None]:
        _, _, z, rows, columns = given.kept
        assert z is not None and rows is not None and columns is not None
        to_z = torch.bmm(grad, columns)
        if to_x is not None and given.drop is None:
            to_x.baddbmm_(to_z, rows)
        elif to_x is not None and given.drop is not None:
            given.drop.add(to_x, torch.bmm(to_z, rows))
        return [summed(to_z.mT, given.seen), summed(grad.mT, z)]


@dataclass(frozen=True, slots=True)
class Gated:
    """The update of ``fused_linear``, by down, up, router and M, or None, each of several adapters."""

    settings: GateSettings
    count: int = 4
    reads_all: bool = True

    def add(self, x: Tensor, seen: Tensor, y: Tensor, weights: Sequence[Tensor | None]) -> Kept:
        down, up, router, interaction = weights
        assert down is not None and up is not None and router is not None
        found = narrow(x, None if seen is x else seen, down, router, self.settings.dtype)
        gated, z, phi, omega = gate(found, interaction, router.shape[-2], self.settings)
        columns = up.to(self.settings.dtype)
        added(y, gated, columns.mT)
        return phi, omega, z, found.rows, found.router_rows, columns

    def backward(
        self, grad: Tensor, others: tuple[Tensor | None, Tensor | None], given: Given, to_x: Tensor | None
    ) -> list[Tensor | None]:
        down, _, router, interaction = given.weights
        phi, _, z, rows, router_rows, columns = given.kept
        assert down is not None and router is not None
        assert phi is not None and z is not None and rows is not None and columns is not None
        grads, to_interaction, gated = gate_backward(
            grad @ columns, z, phi, interaction, others, router_rows, self.settings
        )
        seen = None if given.drop is None else given.seen
        to_down, to_router = weights_backward(grads, given.x, seen, down.shape[-2], router.shape[-2])
        if to_x is not None:
            input_backward(grads, given.drop, rows, router_rows, to_x, to_x.dtype)
        return [to_down, summed(grad.mT, gated), to_router, to_interaction]


class Part(NamedTuple):
    """An update for the rows of ``adapters`` neighbours. ``drop``: of their rows, [adapters, tokens, d_in];
    ``seen``: x after it, where it was computed already. ``heard``: whether phi and omega are asked for."""

    update: Update
    rows: slice
    adapters: int
    weights: tuple[Tensor | None, ...]
    drop: Drop | None = None
    seen: Tensor | None = None
    heard: bool = False

    def of(self, whole: Tensor) -> Tensor:
        """Return the part's rows of [all rows, length, d], as [adapters, tokens, d]."""
        return whole[self.rows].view(self.adapters, -1, whole.shape[-1])


def joined_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, parts: Sequence[Part]
) -> tuple[Tensor, list[Routing]]:
    """Return ``x W + b`` with the updates of ``parts``, (all rows, length, d_out), and routings asked for.

    Args:
        x: (all rows, length, d_in), in the dtype of the products.
        weight: Frozen, (d_out, d_in), in that dtype too.
        bias: Frozen, (d_out,), or None.
        parts: None of which has rows of another.
    """
    weights = [weight for part in parts for weight in part.weights]
    y, *routed = _JoinedLinear.apply(x.contiguous(), weight, bias, tuple(parts), *weights)  # type: ignore[no-untyped-call]
    return y, [Routing(*pair) for pair in zip(routed[::2], routed[1::2], strict=True)]


class _JoinedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, parts: tuple[Part, ...], *_: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        routed: list[Tensor | None] = []
        saved: list[Kept] = []
        seens: list[Tensor | None] = []
        with autocast_off(x):
            y = torch.nn.functional.linear(x, weight, bias)
            for part in parts:
                own = part.of(x)
                seen = part.seen if part.seen is not None else own if part.drop is None else part.drop.of(own)
                kept = part.update.add(own, seen, part.of(y), part.weights)
                routed += kept[:2] if part.heard else ()
                saved.append(kept)
                seens.append(seen if part.drop is not None else None)
        reads = any(part.drop is None or part.update.reads_all for part in parts)
        ctx.parts = [part._replace(weights=(), drop=None, seen=None) for part in parts]
        ctx.scales = [None if part.drop is None else part.drop.scale for part in parts]
        ctx.kept = [len(kept) for kept in saved]
        factors = [None if part.drop is None else part.drop.factor for part in parts]
        weights = [w for part in parts for w in part.weights]
        ctx.save_for_backward(
            x if reads else None, weight, *seens, *factors, *weights, *(t for kept in saved for t in kept)
        )
        return y, *(t for t in routed if t is not None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
        x, weight, *rest = ctx.saved_tensors
        left, of_routings = iter(rest), iter(others)
        seens, factors = ([next(left) for _ in ctx.parts] for _ in range(2))
        weights = [[next(left) for _ in range(part.update.count)] for part in ctx.parts]
        to_weights: list[Tensor | None] = []
        with autocast_off(weight):
            if grad is None:
                grad = weight.new_zeros(*x.shape[:-1], len(weight))
            grad = grad.to(weight.dtype).contiguous()
            to_x = grad @ weight if ctx.needs_input_grad[0] else None
            for part, size, seen, factor, scale, own in zip(
                ctx.parts, ctx.kept, seens, factors, ctx.scales, weights, strict=True
            ):
                drop = None if factor is None else Drop(factor, scale)
                rows = seen if x is None else part.of(x)
                given = Given(
                    rows, rows if drop is None else seen, drop, own, tuple(next(left) for _ in range(size))
                )
                heard = (next(of_routings), next(of_routings)) if part.heard else (None, None)
                into = None if to_x is None else part.of(to_x)
                found = part.update.backward(part.of(grad), heard, given, into)
                to_weights += [None if f is None else f.to(w.dtype) for f, w in zip(found, own, strict=True)]
        return to_x, None, None, None, *to_weights
