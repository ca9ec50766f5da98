"""Attention in parts: any queries over any keys, with the log-sum-exp by which parts are merged.

Query heads that share a key head are laid along the query axis, so grouped keys are never repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_FLASH_HEAD_DIM = 256
ALIGNED_KEYS = 8
"""CUDA's masked kernel takes keys in multiples of this only."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """Hold what one layer hands to its attention, for the tokens that are fed.

    ``query`` [rows, heads, n, size], ``key`` and ``value`` [rows, key heads, n, size]. A token sees those
    less than ``window`` positions before it.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None

    @property
    def groups(self) -> int:
        """Return the number of query heads of a key head."""
        return self.query.shape[1] // self.key.shape[1]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, causal: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return ``attention`` of any queries and keys at this layer's scale."""
        scale = self.query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        return attention(query, key, value, scale=scale, mask=mask, causal=causal, softcap=self.softcap)


def fold(query: Tensor, groups: int) -> Tensor:
    """Return [rows, heads, n, d] as [rows, key heads, groups * n, d]."""
    rows, heads, n, size = query.shape
    return query.reshape(rows, heads // groups, groups * n, size)


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Return attention over both parts' keys, from the outputs [..., d] and log-sum-exps [...] of each."""
    share = torch.sigmoid(other_lse - lse)[..., None]
    return torch.lerp(out.to(share.dtype), other.to(share.dtype), share).to(out.dtype)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to scores: 0 where seen, elsewhere so low that nothing comes through.

    It is finite: a row that sees nothing has a log-sum-exp, and weighs nothing in a merge.
    """
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
        ~seen, torch.finfo(dtype).min / 2
    )


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = False,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return attention ``(out, lse)``: [rows, heads, n, head size] and [rows, heads, n], float32.

    ``lse`` is the natural log-sum-exp of the scores. ``mask`` is added to the scores and broadcasts over rows
    and heads. The kernels of torch are used where they give ``lse``; else the scores are computed as such.
    """
    if softcap is None and query.shape[-1] == value.shape[-1]:
        if query.device.type == "cpu":
            return _cpu_kernel(query, key, value, scale=scale, mask=mask, causal=causal)
        fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= _FLASH_HEAD_DIM
        if fits and query.device.type == "cuda":
            if mask is None and query.dtype != torch.float32:
                return _flash_kernel(query, key, value, scale=scale, causal=causal)
            if mask is None or key.shape[2] % ALIGNED_KEYS == 0:
                return _efficient_kernel(query, key, value, scale=scale, mask=mask, causal=causal)
    return _by_scores(query, key, value, scale=scale, mask=mask, causal=causal, softcap=softcap)


def _cpu_kernel(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    if mask is not None:
        mask = mask.expand(query.shape[0], 1, *mask.shape[-2:])
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    return out, lse


def _flash_kernel(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, causal, False, scale=scale
    )
    return out, lse[..., : query.shape[2]]


def _efficient_kernel(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    if mask is not None:
        mask = mask.expand(*query.shape[:3], key.shape[2])
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, True, 0.0, causal, scale=scale
    )
    return out, lse[..., : query.shape[2]]


def _by_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    mask: Tensor | None,
    causal: bool,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Hold all scores in float32: slower, and right for any sizes and soft-capping."""
    if query.dtype == torch.float16:  # whose range they may leave
        query, key = query.float(), key.float()
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        n, m = scores.shape[-2:]
        seen = torch.ones(n, m, dtype=torch.bool, device=scores.device).tril(m - n)
        scores.masked_fill_(~seen, torch.finfo(scores.dtype).min / 2)
    if mask is not None:
        scores += mask
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp_().to(value.dtype) @ value, lse
