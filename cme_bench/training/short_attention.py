"""Causal attention within many short examples, as a few small Triton kernels.

Kernels made for long rows give each example tiles of 128 tokens and one program a processor; of examples of
a hundred tokens most of that waits. These have tiles of 64, need no atomic sums, and no copy of the gradient
in float32: their results are the same bits each time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 512
"""Examples may have so many tokens; beyond, other kernels are as fast."""
_BLOCK = 64
_WIDTHS = (16, 32, 64, 128)


def suits(query: Tensor, longest: int) -> bool:
    """Return whether the kernels are made for queries, [tokens, heads, width], of such examples."""
    return (
        query.dtype in {torch.bfloat16, torch.float16} and query.shape[-1] in _WIDTHS and longest <= LONGEST
    )


def short_attention(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float | None = None
) -> Tensor:
    """Return causal attention within each example, [tokens, heads, width].

    Args:
        query: [tokens, heads, width].
        key: [tokens, kept heads, width], of which each serves as many heads.
        value: As the key.
        starts: Of the examples, int32 [examples + 1]; the last is the number of tokens.
        longest: Most tokens of an example.
        scale: Factor on the scores; by default one over the root of the width.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    out: Tensor = _ShortAttention.apply(query, key, value, starts, longest, factor)  # type: ignore[no-untyped-call]
    return out


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float
    ) -> Tensor:
        from cme_bench.training.triton_attention import forward_kernel

        query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
        tokens, heads, _ = query.shape
        out = query.new_empty(query.shape)
        sums = query.new_empty(heads, tokens, dtype=torch.float32)
        grid, given = _launch(query, key, value, starts, longest, scale)
        forward_kernel[grid, heads](query, key, value, starts, out, sums, tokens, **given)
        ctx.save_for_backward(query, key, value, starts, out, sums)
        ctx.longest, ctx.scale = longest, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        from cme_bench.training.triton_attention import key_kernel, query_kernel

        query, key, value, starts, out, sums = ctx.saved_tensors
        tokens, heads, _ = query.shape
        grad, inner = grad.contiguous(), torch.empty_like(sums)
        to_query, to_key, to_value = (t.new_empty(t.shape) for t in (query, key, value))
        grid, given = _launch(query, key, value, starts, ctx.longest, ctx.scale)
        query_kernel[grid, heads](
            query, key, value, starts, out, sums, grad, to_query, inner, tokens, **given
        )
        key_kernel[grid, key.shape[1]](
            query, key, value, starts, sums, grad, inner, to_key, to_value, tokens, **given
        )
        return to_query, to_key, to_value, None, None, None


def _launch(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float
) -> tuple[int, dict[str, Any]]:
    """Return the programs of all examples' blocks, and the kernels' common arguments."""
    blocks = -(-longest // _BLOCK)
    given: dict[str, Any] = {"blocks": blocks, "scale": scale}
    for name, tensor in (("q", query), ("k", key), ("v", value)):
        given[f"{name}_row"], given[f"{name}_head"] = tensor.stride(0), tensor.stride(1)
    given |= {"GROUP": query.shape[1] // key.shape[1], "WIDTH": query.shape[2], "BLOCK": _BLOCK}
    return (len(starts) - 1) * blocks, given | {"num_warps": 4, "num_stages": 1}
