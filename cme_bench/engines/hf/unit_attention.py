"""Attention of a pack's units within themselves: units of like length side by side, [units, longest].

A batch of rows costs its longest row squared for every row, so units are divided where a batch more costs
less than the padding that it saves. Under a tree mask no token sees what comes after it, so the queries of
long units are divided too, each part over the keys up to its end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cme_bench.engines.hf.attention import ALIGNED_KEYS, AttentionCall, additive, fold
from cme_bench.engines.packs import Ints, Unit

_LAUNCH = {"cpu": 1 << 20, "cuda": 1 << 29}
"""Products of numbers that take as long as a batch more, of a float32 model; 16 bits do eight times as many
on CUDA. H200: 0.1 ms against some 20 TF/s."""
_MOST_CUTS, _MOST_PARTS = 32, 8


def bands(lengths: Ints, launch: float) -> list[tuple[int, int]]:
    """Return [first, last) of the batches into which units of these lengths, in their order, are divided.

    ``launch``: pairs of tokens that cost as much as a batch more. Batches end where lengths change by an
    eighth or more; of these ends the best are taken.
    """
    levels = np.log(lengths) // np.log(1.125)
    cuts = [0, *(np.flatnonzero(np.diff(levels)) + 1).tolist(), len(lengths)]
    while len(cuts) > _MOST_CUTS:
        cuts = [*cuts[:-1:2], cuts[-1]]
    longest = [int(lengths[a:b].max()) for a, b in itertools.pairwise(cuts)]
    best, before = [0.0], [0]
    for stop in range(1, len(cuts)):
        options = []
        most = 0
        for start in range(stop - 1, -1, -1):
            most = max(most, longest[start])
            options.append((best[start] + (cuts[stop] - cuts[start]) * most**2 + launch, start))
        cost, start = min(options)
        best.append(cost)
        before.append(start)
    found = []
    stop = len(cuts) - 1
    while stop:
        found.append((cuts[before[stop]], cuts[stop]))
        stop = before[stop]
    return found[::-1]


def parts(pairs: float, longest: int, launch: float) -> list[tuple[int, int]]:
    """Return [first, last) of the queries that are computed at once: few parts, or many that skip more keys.

    ``pairs``: of queries and keys in a batch. In n parts they are (n + 1) / 2n of them.
    """
    count = min(_MOST_PARTS, max(1, round(math.sqrt(pairs / (2 * launch)))))
    size = -(-longest // count)
    size += -size % ALIGNED_KEYS
    return [(start, min(start + size, longest)) for start in range(0, longest, size)]


def launch_pairs(call: AttentionCall) -> float:
    """Return the pairs of a query and a key that take as long as a batch more."""
    kind = "cuda" if call.query.device.type == "cuda" else "cpu"
    quick = 8 if kind == "cuda" and call.query.dtype.itemsize < 4 else 1
    return quick * _LAUNCH[kind] / (call.query.shape[1] * call.query.shape[3])


class UnitAttention:
    """Attend within ``units``, which follow each other in a pack; every layer on its own device.

    ``chains``: no unit branches. Where units stand side by side, ``real`` [units, longest] is False on
    padding, ``gather`` [units * longest] and ``scatter`` [n] bring tokens there and back.
    """

    def __init__(self, units: Sequence[Unit], device: torch.device) -> None:
        self.units = units
        lengths = np.array([len(unit.tokens) for unit in units])
        self.n_tokens = int(lengths.sum())
        self._chains = all(int(unit.end.min()) == len(unit.end) for unit in units)
        longest = int(lengths.max())
        unaligned = -longest % ALIGNED_KEYS if device.type == "cuda" else 0
        self._longest = longest + unaligned
        self._side_by_side = len(units) > 1 or unaligned > 0
        starts, offsets = (np.cumsum(lengths) - lengths)[:, None], np.arange(self._longest)
        self._real = torch.from_numpy(offsets < lengths[:, None])
        self._gather = torch.from_numpy(np.where(self._real.numpy(), starts + offsets, starts).ravel())
        self._scatter = torch.from_numpy(np.flatnonzero(self._real.numpy()))
        self._placed: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        self._masks: dict[tuple[int | None, int, int, int, torch.dtype, torch.device], Tensor] = {}

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._placed:
            real, gather, scatter = (t.to(device) for t in (self._real, self._gather, self._scatter))
            self._placed[device] = real, gather, scatter
        return self._placed[device]

    def __call__(
        self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return ``(out, lse)`` [1, heads, n, ...] and [1, heads, n] of the units' own tokens."""
        if self._side_by_side:
            query, key, value = map(self._batch, (query, key, value))
        if self._chains and (call.window is None or call.window >= query.shape[2]):
            key, value = (states.repeat_interleave(call.groups, 1) for states in (key, value))
            out, lse = call.attend(query, key, value, causal=True)
        else:
            out, lse = self._masked(call, query, key, value)
        return (self._unbatch(out), self._unbatch(lse)) if self._side_by_side else (out, lse)

    def _masked(
        self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows, heads, n, _ = query.shape
        outs, lses = [], []
        for start, stop in parts(rows * n**2, n, launch_pairs(call)):
            some = query[:, :, start:stop]
            mask = self._mask(call.window, call.groups, query, start, stop)
            out, lse = call.attend(fold(some, call.groups), key[:, :, :stop], value[:, :, :stop], mask=mask)
            outs.append(out.reshape(rows, heads, stop - start, -1))
            lses.append(lse.reshape(rows, heads, stop - start))
        return (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs, 2), torch.cat(lses, 2))

    def _batch(self, states: Tensor) -> Tensor:
        """Return [1, h, n, d] as [units, h, longest, d]."""
        real, gather, _ = self._on(states.device)
        rows = states[0].transpose(0, 1).index_select(0, gather)
        return rows.reshape(*real.shape, states.shape[1], -1).transpose(1, 2)

    def _unbatch(self, states: Tensor) -> Tensor:
        """Return [units, h, longest, ...] as [1, h, n, ...]."""
        tokens = states.transpose(1, 2).flatten(0, 1)
        return tokens.index_select(0, self._on(states.device)[2]).transpose(0, 1)[None]

    def _mask(self, window: int | None, groups: int, query: Tensor, start: int, stop: int) -> Tensor:
        """Return [units, 1, groups * queries, stop] for the queries [start, stop): 0 where a token sees
        another, else very low."""
        cut = window if window is not None and window < self._longest else None
        key = (cut, groups, start, stop, query.dtype, query.device)
        if key not in self._masks:
            ends, positions = (tensor.to(query.device) for tensor in self._padded)
            index = torch.arange(stop, device=query.device)
            seen = (index <= index[start:, None]) & (index[start:, None] < ends[:, None, :stop])
            if cut is not None:
                seen &= positions[:, start:stop, None] - positions[:, None, :stop] < cut
            if self._side_by_side:  # padding sees one token, so that its softmax is defined
                seen[:, :, 0] |= ~self._on(query.device)[0][:, start:stop]
            self._masks[key] = additive(seen, query.dtype).repeat(1, groups, 1)[:, None]
        return self._masks[key]

    @property
    def _padded(self) -> tuple[Tensor, Tensor]:
        """Return the end of sight and the position of every token, [units, longest] each."""
        ends = torch.zeros(len(self.units), self._longest, dtype=torch.int64)
        positions = torch.zeros_like(ends)
        for i, unit in enumerate(self.units):
            ends[i, : len(unit.end)] = torch.from_numpy(unit.end)
            positions[i, : len(unit.end)] = torch.from_numpy(unit.positions)
        return ends, positions
