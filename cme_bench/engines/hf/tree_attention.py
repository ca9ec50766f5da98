"""Attention of a pack: every token sees the kept prefix, its own ancestors in the pack, and itself.

The model is fed one row, ``[1, n]``. Two parts are computed and merged by their log-sum-exp:

* queries over the kept keys of the prefix: a plain product, no mask, no copy of the keys whatever the batch;
* queries over their own unit: units side by side as a batch [units, longest], under a tree mask.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cme_bench.engines.hf.attention import ALIGNED_KEYS, AttentionCall, additive, fold, merge
from cme_bench.engines.hf.attention_hook import UnsupportedAttentionError
from cme_bench.engines.packs import Pack


class KeptPrefix:
    """Keep keys and values of the prefix in work, by attention module; each [1, key heads, tokens, size]."""

    def __init__(self) -> None:
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def head(self, module: nn.Module, tokens: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the first ``tokens``."""
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


class _Places:
    """Where the tokens of a pack stand, on one device.

    ``positions`` [n]; where units stand side by side, ``real`` [units, longest] is False on padding,
    ``gather`` [units * longest] and ``scatter`` [n] bring tokens there and back.
    """

    def __init__(self, pack: Pack, longest: int, device: torch.device) -> None:
        starts, offsets = pack.starts[:-1, None], np.arange(longest)
        real = offsets < np.diff(pack.starts)[:, None]
        self.positions = torch.from_numpy(pack.positions).to(device)
        self.real = torch.from_numpy(real).to(device)
        self.gather = torch.from_numpy(np.where(real, starts + offsets, starts).ravel()).to(device)
        self.scatter = torch.from_numpy(np.flatnonzero(real)).to(device)


class PackAttention:
    """Compute the attention of one pack, every layer on its own device.

    ``windows``: of every call so far; with them a model is checked.
    """

    def __init__(self, pack: Pack, kept: KeptPrefix, device: torch.device) -> None:
        self.pack = pack
        self.kept = kept
        self.windows: list[int | None] = []
        self._chains = all(int(unit.end.min()) == len(unit.end) for unit in pack.units)
        self._longest = int(np.diff(pack.starts).max())
        unaligned = -self._longest % ALIGNED_KEYS if device.type == "cuda" else 0
        self._side_by_side = len(pack.units) > 1 or unaligned > 0
        self._longest += unaligned
        self._places: dict[torch.device, _Places] = {}
        self._unit_masks: dict[tuple[int | None, int, torch.dtype, torch.device], Tensor] = {}
        self._prefix_masks: dict[tuple[int, int, torch.dtype, torch.device], Tensor] = {}

    def _on(self, device: torch.device) -> _Places:
        if device not in self._places:
            self._places[device] = _Places(self.pack, self._longest, device)
        return self._places[device]

    def __call__(self, call: AttentionCall) -> Tensor:
        """Return [1, n, heads, head size]."""
        n, cached, query = self.pack.n_tokens, self.pack.cached, call.query
        if call.key.shape[0] != 1 or call.key.shape[2] != n or query.shape[2] != n:
            raise UnsupportedAttentionError("the model does not attend to exactly the tokens it was fed")
        self.windows.append(call.window)
        out, lse = self._within_units(call)
        if cached:
            keys, values = self.kept.head(call.module, cached)
            first, mask = self._prefix_mask(call.window, call.groups, query)
            seen, seen_lse = call.attend(
                fold(query, call.groups), keys[:, :, first:], values[:, :, first:], mask=mask
            )
            out = merge(seen.reshape(out.shape), seen_lse.reshape(lse.shape), out, lse)
        if self.pack.keep:
            self.kept.extend(call.module, cached, call.key, call.value)
        return out.transpose(1, 2)

    def _within_units(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Return ``(out, lse)`` [1, heads, n, ...] and [1, heads, n], each token over its own unit."""
        query, key, value = call.query, call.key, call.value
        if self._side_by_side:
            query, key, value = map(self._batch, (query, key, value))
        rows, heads, n, _ = query.shape
        if self._chains and (call.window is None or call.window >= n):
            key, value = (states.repeat_interleave(call.groups, 1) for states in (key, value))
            out, lse = call.attend(query, key, value, causal=True)
        else:
            mask = self._unit_mask(call.window, call.groups, query)
            out, lse = call.attend(fold(query, call.groups), key, value, mask=mask)
            out, lse = out.reshape(rows, heads, n, -1), lse.reshape(rows, heads, n)
        return (self._unbatch(out), self._unbatch(lse)) if self._side_by_side else (out, lse)

    def _batch(self, states: Tensor) -> Tensor:
        """Return [1, h, n, d] as [units, h, longest, d]."""
        places = self._on(states.device)
        rows = states[0].transpose(0, 1).index_select(0, places.gather)
        return rows.reshape(*places.real.shape, states.shape[1], -1).transpose(1, 2)

    def _unbatch(self, states: Tensor) -> Tensor:
        """Return [units, h, longest, ...] as [1, h, n, ...]."""
        tokens = states.transpose(1, 2).flatten(0, 1)
        return tokens.index_select(0, self._on(states.device).scatter).transpose(0, 1)[None]

    def _unit_mask(self, window: int | None, groups: int, query: Tensor) -> Tensor:
        """Return [units, 1, groups * longest, longest]: 0 where a token sees another, else very low."""
        cut = window if window is not None and window < self._longest else None
        key = (cut, groups, query.dtype, query.device)
        if key not in self._unit_masks:
            ends, positions = (tensor.to(query.device) for tensor in self._padded_units())
            index = torch.arange(self._longest, device=query.device)
            seen = (index <= index[:, None]) & (index[:, None] < ends[:, None, :])  # [units, query, key]
            if cut is not None:
                seen &= positions[:, :, None] - positions[:, None, :] < cut
            if self._side_by_side:
                seen[:, :, 0] |= ~self._on(
                    query.device
                ).real  # padding sees one token, so that its softmax is defined
            self._unit_masks[key] = additive(seen, query.dtype).repeat(1, groups, 1)[:, None]
        return self._unit_masks[key]

    def _padded_units(self) -> tuple[Tensor, Tensor]:
        """Return the end of sight and the position of every token, [units, longest] each."""
        ends = torch.zeros(len(self.pack.units), self._longest, dtype=torch.int64)
        positions = torch.zeros_like(ends)
        for i, unit in enumerate(self.pack.units):
            ends[i, : len(unit.end)] = torch.from_numpy(unit.end)
            positions[i, : len(unit.end)] = torch.from_numpy(unit.positions)
        return ends, positions

    def _prefix_mask(self, window: int | None, groups: int, query: Tensor) -> tuple[int, Tensor | None]:
        """Return the first kept token that is seen, and a mask [groups * n, kept from there] or None."""
        cached = self.pack.cached
        first = 0 if window is None else max(0, cached - window + 1)
        if window is None or int(self.pack.positions.max()) < window:
            return 0, None
        if first >= cached:  # a window of one token: nothing kept is seen, and one key keeps softmax defined
            first = cached - 1
        key = (window, groups, query.dtype, query.device)
        if key not in self._prefix_masks:
            kept = torch.arange(first, cached, device=query.device)
            seen = self._on(query.device).positions[:, None] - kept < window
            self._prefix_masks[key] = additive(seen, query.dtype).repeat(groups, 1)
        return first, self._prefix_masks[key]
