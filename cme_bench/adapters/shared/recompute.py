"""Inputs that need not be kept for the backward pass, because autograd keeps what they are made of."""

from __future__ import annotations

import torch
from torch import Tensor

TRANSPARENT = "returns_the_tensor"
"""Attribute of a hook on saved tensors that hands back the very tensor, so that it may be asked again."""


def kept_factors(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return two tensors of the shape of ``x`` whose product it is, and which autograd keeps for that.

    So is the input of a gated feed-forward's last linear: to keep it as well costs as much as each factor,
    to multiply a second time costs little. None where ``x`` is anything else; where saved tensors are
    replaced by a hook (gradient checkpointing computes all a second time); and where torch compiles, which
    decides by itself what to keep.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x) or _replaced():
        return None
    node = x.grad_fn
    if node is None or node.name() != "MulBackward0" or x.output_nr != 0:
        return None
    factors = (node._saved_self, node._saved_other)  # type: ignore[attr-defined]  # of this kind of node
    if any(f is None or f.shape != x.shape or f.dtype != x.dtype for f in factors):
        return None
    return factors


def _replaced() -> bool:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and not getattr(hooks[0], TRANSPARENT, False)
