"""A routed layer without gradients: one product for z and the logits, one kernel for the gate, and B added
where the base's output lies.

The plain form is some fifteen operations, three of them over the wide output, and in float32 whatever the
model's type. Here A and S lie in one matrix, in the type that products take, and B in the same type. The
matrices of a frozen adapter are kept with the layer: in float32 a copy of A and S, in bfloat16 one of B too,
which is half of the adapter's size. Nothing of the base model is copied or changed.

In bfloat16 on CUDA, A, B and the gated latent are rounded as under autocast; the logits stay exact
(``bf16_products``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cme_bench.adapters.routing import bf16_products
from cme_bench.adapters.routing.gate import GateSettings, gate
from cme_bench.adapters.routing.narrow import Narrow
from cme_bench.adapters.routing.router import Routing
from cme_bench.adapters.shared.lowrank import autocast_off, autocast_on

_ALIGNMENT = 4  # columns of the narrow product: 16 bytes in float32
State: TypeAlias = tuple[Tensor, int, int]
"""A parameter, its version and its address."""


@dataclass(frozen=True, slots=True)
class Matrices:
    """An adapter's matrices on one layer, as they are multiplied.

    Attributes:
        rows: A and S, (width + pieces k, d_in), then rows of zeros.
        columns: The B_i side by side, (d_out, k r).
        width: Columns of z.
        pieces: S is the sum of so many blocks of rows.
        made_of: The parameters with their versions and addresses when these were made; None if a change would
            not be noticed.
        asked: Type and device of the inputs that these were made for.
        kept: What others made of these, by their names for it.
    """

    rows: Tensor
    columns: Tensor
    width: int
    pieces: int
    made_of: tuple[State, ...] | None
    asked: tuple[torch.dtype, torch.device]
    kept: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, x: Tensor, down: Tensor, up: Tensor, router: Tensor, dtype: torch.dtype) -> Matrices:
        """Return the matrices for products with ``x`` in ``dtype``. Shapes as in ``fused_linear.Weights``."""
        made_of = _states(down, up, router)
        if dtype == torch.bfloat16:
            rows, pieces = bf16_products.stack(down, router, dim=-2), bf16_products.PIECES
        else:
            zeros = down.new_zeros(-(len(down) + len(router)) % _ALIGNMENT, down.shape[1])
            rows, pieces = torch.cat([down, router, zeros]), 1
        return cls(rows, up.detach().to(dtype), len(down), pieces, made_of, (x.dtype, x.device))

    def still(self, x: Tensor, down: Tensor, up: Tensor, router: Tensor) -> bool:
        """Return whether these are what would be made now, and autocast decides nothing; a part of what a
        launch costs, so it is written out."""
        if self.made_of is None or self.asked[0] != x.dtype or self.asked[1] != x.device:
            return False
        for part, (made, version, address) in zip((down, up, router), self.made_of, strict=True):
            same = part is made and part._version == version and part.data_ptr() == address
            if not same or part.requires_grad:
                return False
        return not (_is_traced() or autocast_on(x))


def _states(*parts: Tensor) -> tuple[State, ...] | None:
    """Return frozen parameters, their versions and addresses; None for others, as an optimizer may write
    without a trace."""
    if any(part.requires_grad or part.is_inference() for part in parts):
        return None
    return tuple((part, part._version, part.data_ptr()) for part in parts)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def product_dtype(x: Tensor, down: Tensor, up: Tensor, router: Tensor) -> torch.dtype | None:
    """Return the type in which a layer's products are computed; None where only the plain form is right."""
    parts = (down, up, router)
    if _is_traced():
        return None
    if not all(type(part) is nn.Parameter and part.device == x.device for part in parts):
        return None
    types = {part.dtype for part in parts}
    if autocast_on(x) and torch.get_autocast_dtype(x.device.type) != x.dtype:
        return None
    if bf16_products.suits(x):
        return x.dtype if types <= {torch.float32, torch.bfloat16} else None
    return x.dtype if types == {x.dtype} and x.dtype in {torch.float32, torch.float64} else None


NarrowProduct: TypeAlias = Callable[[Tensor, Matrices], Tensor | None]
"""Returns x A^T and x S^T side by side, (tokens, columns), of x, (..., d_in); None where it does not."""
narrow_product: ContextVar[NarrowProduct | None] = ContextVar("cme_narrow_product", default=None)
"""Lent by who multiplies float32 in another way, as exactly."""


def gated(
    x: Tensor, found: Matrices, interaction: Tensor | None, settings: GateSettings
) -> tuple[Tensor, Routing]:
    """Return the gated latent, (tokens, k r), and the routing of x, (..., d_in). ``interaction``: M."""
    k = found.columns.shape[1] // settings.rank
    with autocast_off(x):
        out = _narrow(x, found)
        logits = out[:, found.width : found.width + found.pieces * k]
        narrow = Narrow(out[:, : found.width], logits, found.rows, None)
        latent, _, phi, omega = gate(narrow, interaction, k, settings, columns=out.shape[1])
    return latent, Routing(phi, omega)


def _narrow(x: Tensor, found: Matrices) -> Tensor:
    tokens = x.reshape(-1, x.shape[-1])
    if found.pieces > 1:
        return bf16_products.product(tokens, found.rows.mT)
    lent = narrow_product.get()
    out = None if lent is None else lent(x, found)
    return torch.mm(tokens, found.rows.mT) if out is None else out


def added(y: Tensor, latent: Tensor, found: Matrices, *, own: bool) -> Tensor:
    """Return ``y``, (tokens, d_out), with the update; written over ``y`` if that is the caller's ``own``."""
    with autocast_off(y):
        if y.dtype != latent.dtype:  # an output that keeps more digits than the products' type
            many = bf16_products.product if latent.dtype == torch.bfloat16 else torch.mm
            return (y + many(latent, found.columns.mT)).to(y.dtype)
        return y.addmm_(latent, found.columns.mT) if own else torch.addmm(y, latent, found.columns.mT)
