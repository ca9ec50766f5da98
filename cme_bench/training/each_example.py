"""Attention of each example of a pack by itself: a CPU's way, and what faster kernels are held against."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def one_by_one(  # noqa: PLR0917
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None = None,
) -> Tensor:
    """Return causal attention within each example, [tokens, heads, width].

    Args:
        query: [tokens, heads, width]; keys and values may have fewer heads.
        key: As the query.
        value: As the query.
        starts: Of the examples, int32 [examples + 1].
        longest: Most tokens of an example; not needed here.
        scaling: Factor on the scores.
        window: Most tokens that one looks back on, itself included.
    """
    edges = starts.tolist()
    parts, flat = [], with_as_many_heads([query, key, value])
    for start, stop in pairwise(edges):
        if start == stop:
            continue
        q, k, v = (part[start:stop].transpose(0, 1)[None] for part in flat)
        places = torch.arange(stop - start, device=query.device)
        seen = places[:, None] >= places[None, :]
        if window is not None:
            seen &= places[:, None] - places[None, :] < window
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def with_as_many_heads(flat: list[Tensor]) -> list[Tensor]:
    """Return queries, keys and values, [tokens, heads, width], with as many heads of each."""
    query, *others = flat
    return [query, *(part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in others)]
