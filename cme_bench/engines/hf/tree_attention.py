"""Attention of a pack: every token sees the path's kept prefix, its own ancestors in the pack, and itself.

The model runs its own code on one row, ``[1, n]``; only the attention function is ours, registered with
transformers under ``NAME``. It computes two parts and merges them by their log-sum-exp:

* queries over the kept keys of the path: a plain product, no mask, no copy of the keys whatever the batch;
* queries over their own unit: units side by side as a batch [units, longest], under a tree mask.

Query heads that share a key head are laid along the query axis, so grouped keys are never repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from cme_bench.engines.hf.forward import base_model
from cme_bench.engines.plan import Pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "cme_tree"
_FLASH_HEAD_DIM = 256
_ALIGNED_KEYS = 8
"""CUDA's masked kernel takes keys in multiples of this only."""
_IGNORED = frozenset({"position_ids", "use_cache", "cache_position"})
"""Arguments that say nothing which the pack does not say."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one layer asks of its attention, for the tokens that are fed.

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
        """Query heads of a key head."""
        return self.query.shape[1] // self.key.shape[1]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, causal: bool = False
    ) -> tuple[Tensor, Tensor]:
        """``attention`` of any queries and keys at this layer's scale."""
        scale = self.query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        return attention(query, key, value, scale=scale, mask=mask, causal=causal, softcap=self.softcap)


Attention: TypeAlias = Callable[[Asked], Tensor]
"""What a model attends by within ``attention_of``: [rows, n, heads, size]."""


class UnsupportedAttentionError(Exception):
    """The model asks its attention for something that cannot be shared; it runs row by row instead."""


class Path:
    """Keys and values of the prefix in work, by attention module; each [1, key heads, tokens, head size]."""

    def __init__(self) -> None:
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def head(self, module: nn.Module, tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first ``tokens``."""
        keys, values = self._kept[module]
        return keys[:, :, :tokens], values[:, :, :tokens]

    def extend(self, module: nn.Module, tokens: int, keys: Tensor, values: Tensor) -> None:
        """Keep the first ``tokens`` and what follows; what was there beyond them is freed."""
        if tokens:
            before = self.head(module, tokens)
            keys, values = torch.cat((before[0], keys), 2), torch.cat((before[1], values), 2)
        else:
            keys, values = keys.clone(), values.clone()
        self._kept[module] = keys, values

    @property
    def n_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self._kept.values() for t in pair)


class PackAttention:
    """Attention of one pack. Records how often it was called and for which windows, for checking a model."""

    def __init__(self, pack: Pack, path: Path, device: torch.device) -> None:
        self.pack = pack
        self.path = path
        self.device = device
        self.windows: list[int | None] = []
        on_cuda = device.type == "cuda"
        self._longest = int(np.diff(pack.starts).max())
        self._side_by_side = len(pack.units) > 1 or on_cuda
        self._positions = torch.from_numpy(pack.positions).to(device)  # [n]
        if self._side_by_side:
            if on_cuda:
                self._longest += -self._longest % _ALIGNED_KEYS
            starts, offsets = pack.starts[:-1, None], np.arange(self._longest)
            real = offsets < np.diff(pack.starts)[:, None]  # [units, longest]
            self._real = torch.from_numpy(real).to(device)
            self._gather = torch.from_numpy(np.where(real, starts + offsets, starts).ravel()).to(device)
            self._scatter = torch.from_numpy(np.flatnonzero(real)).to(device)  # [n]
        self._masks: dict[tuple[int | None, int, torch.dtype], Tensor | None] = {}

    def __call__(self, asked: Asked) -> Tensor:
        """[1, n, heads, head size]."""
        n, cached, query = self.pack.n_tokens, self.pack.cached, asked.query
        if asked.key.shape[0] != 1 or asked.key.shape[2] != n or query.shape[2] != n:
            raise UnsupportedAttentionError("the model does not attend to exactly the tokens it was fed")
        self.windows.append(asked.window)
        out, lse = self._own(asked)
        if cached:
            keys, values = self.path.head(asked.module, cached)
            first, mask = self._prefix_mask(asked.window, asked.groups, query.dtype)
            seen, seen_lse = asked.attend(
                fold(query, asked.groups), keys[:, :, first:], values[:, :, first:], mask=mask
            )
            out = merge(seen.reshape(out.shape), seen_lse.reshape(lse.shape), out, lse)
        if self.pack.keep:
            self.path.extend(asked.module, cached, asked.key, asked.value)
        return out.transpose(1, 2)

    def _own(self, asked: Asked) -> tuple[Tensor, Tensor]:
        """``(out, lse)`` [1, heads, n, ...] and [1, heads, n] over the tokens' own units."""
        query, key, value, window, groups = asked.query, asked.key, asked.value, asked.window, asked.groups
        _, heads, n, _ = query.shape
        if self.pack.keep and (window is None or window >= n):
            if groups > 1:
                key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            return asked.attend(query, key, value, causal=True)
        if not self._side_by_side:
            mask = self._own_mask(window, groups, query.dtype)
            out, lse = asked.attend(fold(query, groups), key, value, mask=mask)
            return out.reshape(1, heads, n, -1), lse.reshape(1, heads, n)
        units, longest = self._real.shape

        def batch(states: Tensor) -> Tensor:  # [1, h, n, d] -> [units, h, longest, d]
            rows = states[0].transpose(0, 1).index_select(0, self._gather)
            return rows.reshape(units, longest, states.shape[1], -1).transpose(1, 2)

        mask = self._own_mask(window, groups, query.dtype)
        out, lse = asked.attend(fold(batch(query), groups), batch(key), batch(value), mask=mask)
        out = out.reshape(units, heads, longest, -1).transpose(1, 2).reshape(units * longest, heads, -1)
        lse = lse.reshape(units, heads, longest).transpose(1, 2).reshape(units * longest, heads)
        return (
            out.index_select(0, self._scatter).transpose(0, 1)[None],
            lse.index_select(0, self._scatter).transpose(0, 1)[None],
        )

    def _own_mask(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """[units, 1, groups * longest, longest], 0 where a token sees another, else very low."""
        cut = window if window is not None and window < self._longest else None
        wanted = (cut, groups, dtype)
        if wanted not in self._masks:
            n = self._longest
            ends, positions = self._padded_units()
            place = torch.arange(n, device=self.device)
            seen = (place <= place[:, None]) & (place[:, None] < ends[:, None, :])  # [units, query, key]
            if cut is not None:
                seen &= positions[:, :, None] - positions[:, None, :] < cut
            if self._side_by_side:
                seen[:, :, 0] |= ~self._real  # padding sees one token, so that its softmax is defined
            self._masks[wanted] = additive(seen, dtype).repeat(1, groups, 1)[:, None]
        found = self._masks[wanted]
        assert found is not None
        return found

    def _padded_units(self) -> tuple[Tensor, Tensor]:
        """End of sight and position of every token, [units, longest] each."""
        ends = torch.zeros(len(self.pack.units), self._longest, dtype=torch.int64)
        positions = torch.zeros_like(ends)
        for place, unit in enumerate(self.pack.units):
            ends[place, : len(unit.end)] = torch.from_numpy(unit.end)
            positions[place, : len(unit.end)] = torch.from_numpy(unit.positions)
        return ends.to(self.device), positions.to(self.device)

    def _prefix_mask(self, window: int | None, groups: int, dtype: torch.dtype) -> tuple[int, Tensor | None]:
        """The first kept token that any token sees, and [groups * n, kept from there] or None."""
        cached = self.pack.cached
        first = 0 if window is None else max(0, cached - window + 1)
        if window is None or int(self.pack.positions.max()) < window:
            return 0, None
        if first >= cached:  # a window of one token: nothing kept is seen, and one key keeps softmax defined
            first = cached - 1
        wanted = (-window, groups, dtype)
        if wanted not in self._masks:
            kept = torch.arange(first, cached, device=self.device)
            seen = self._positions[:, None] - kept < window
            self._masks[wanted] = additive(seen, dtype).repeat(groups, 1)
        return first, self._masks[wanted]


def fold(query: Tensor, groups: int) -> Tensor:
    """[rows, heads, n, d] to [rows, key heads, groups * n, d]."""
    rows, heads, n, size = query.shape
    return query.reshape(rows, heads // groups, groups * n, size)


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Attention over both parts' keys, from the outputs [..., d] and log-sum-exps [...] of each."""
    share = torch.sigmoid(other_lse - lse)[..., None]
    return torch.lerp(out.to(share.dtype), other.to(share.dtype), share).to(out.dtype)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where seen; elsewhere so low that nothing comes through, yet finite: a row that sees nothing has a
    log-sum-exp, and weighs nothing in a merge."""
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
    """Attention ``(out, lse)``: [rows, heads, n, head size] and the natural log-sum-exp [rows, heads, n],
    float32. ``mask`` is added to the scores and broadcasts over rows and heads."""
    plain = softcap is None and query.shape[-1] == value.shape[-1]
    if plain and query.device.type == "cpu":
        if mask is not None:
            mask = mask.expand(query.shape[0], 1, *mask.shape[-2:])
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )
        return out, lse
    fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= _FLASH_HEAD_DIM
    if plain and fits and query.device.type == "cuda":
        if mask is None and query.dtype != torch.float32:
            found = torch.ops.aten._scaled_dot_product_flash_attention(
                query, key, value, 0.0, causal, False, scale=scale
            )
            return found[0], found[1][..., : query.shape[2]]
        if mask is None or key.shape[2] % _ALIGNED_KEYS == 0:
            if mask is not None:
                mask = mask.expand(*query.shape[:3], key.shape[2])
            out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
                query, key, value, mask, True, 0.0, causal, scale=scale
            )
            return out, lse[..., : query.shape[2]]
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


_active: ContextVar[Attention] = ContextVar("cme_tree_attention")


def _tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    unknown = [
        name
        for name, given in others.items()
        if name not in _IGNORED and not (given is None or given is False)
    ]
    if others.get("is_causal", True) is False:
        unknown.append("sight of what comes after")
    if attention_mask is not None or dropout or unknown:
        raise UnsupportedAttentionError(
            f"attention with {', '.join(unknown) or 'a mask or dropout'} of its own"
        )
    asked = Asked(module, query, key, value, scaling=scaling, window=sliding_window, softcap=softcap)
    return _active.get()(asked).contiguous(), None


AttentionInterface.register(NAME, _tree_attention)


@contextmanager
def attention_of(model: PreTrainedModel, attend: Attention) -> Iterator[None]:
    """``model`` attends by ``attend`` within; it builds no masks of its own then."""
    configs = {id(c): c for m in base_model(model).modules() if (c := getattr(m, "config", None)) is not None}
    before = [(config, config._attn_implementation) for config in configs.values()]
    token = _active.set(attend)
    try:
        for config, _ in before:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name
        _active.reset(token)
