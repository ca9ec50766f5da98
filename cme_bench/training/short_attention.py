"""Causal attention within many short examples, as a few small Triton kernels.

Kernels made for long rows give each example tiles of 128 tokens and one program a processor; of examples of
a hundred tokens most of that waits. These have tiles of 64, need no atomic sums, and no copy of the gradient
in float32: their results are the same bits each time.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cme_bench.training.each_example import one_by_one
from cme_bench.util.kernels import compute

LONGEST = 512
"""Examples may have so many tokens; beyond, other kernels are as fast."""
_BLOCK = 64
_WIDTHS = (16, 32, 64, 128)
_TOLERANCE = 0.02
"""bfloat16 has steps of 0.8 %."""


def suits(query: Tensor, longest: int) -> bool:
    """Return whether the kernels are made for queries, [tokens, heads, width], of such examples, and work."""
    made = query.dtype in {torch.bfloat16, torch.float16} and query.shape[-1] in _WIDTHS
    return made and longest <= LONGEST and query.is_cuda and work(query.device)


@functools.cache
def work(device: torch.device) -> bool:
    """Return whether the kernels can be built for a device, and compute there what they should; tried once.

    Without them torch's own attention does the same.
    """
    otherwise = "short examples are attended by torch's kernels, slower"
    return compute(lambda: _furthest(device) < _TOLERANCE, otherwise)


def _furthest(device: torch.device) -> float:
    """Return the largest relative difference from the plain formula, of results and gradients."""
    lengths, heads, kept, width = (5, 70, 0, 130), 4, 2, 32
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(lengths), n, width) for n in (heads, kept, kept, heads)]
    drawn = [torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes]
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    found = []
    for attend, dtype in ((short_attention, torch.bfloat16), (one_by_one, torch.float32)):
        q, k, v = (part.to(dtype, copy=True).requires_grad_() for part in drawn[:3])
        out = attend(q, k, v, starts, max(lengths), None)
        found.append([out, *torch.autograd.grad(out, (q, k, v), drawn[3].to(dtype))])
    pairs = [(ours.detach().float(), wanted.detach().float()) for ours, wanted in zip(*found, strict=True)]
    return max(float((ours - wanted).norm() / wanted.norm()) for ours, wanted in pairs)


def short_attention(  # noqa: PLR0917
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
    def forward(  # noqa: PLR0917
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


def _launch(  # noqa: PLR0917
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float
) -> tuple[int, dict[str, Any]]:
    """Return the programs of all examples' blocks, and the kernels' common arguments."""
    blocks = -(-longest // _BLOCK)
    given: dict[str, Any] = {"blocks": blocks, "scale": scale}
    for name, tensor in (("q", query), ("k", key), ("v", value)):
        given[f"{name}_row"], given[f"{name}_head"] = tensor.stride(0), tensor.stride(1)
    given |= {"GROUP": query.shape[1] // key.shape[1], "WIDTH": query.shape[2], "BLOCK": _BLOCK}
    return (len(starts) - 1) * blocks, given | {"num_warps": 4, "num_stages": 1}
