"""Decoding rows of several prefixes in one batch: each prefix is held once, and seen by its own rows.

Few questions of each of many images would otherwise be decoded a few rows at a time, and a step takes about
as long for a few rows as for many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor, nn

from cme_bench.engines.hf.attention import ALIGNED_KEYS, AttentionCall, additive, fold
from cme_bench.engines.hf.forward import CausalForward
from cme_bench.engines.hf.prefix_decoding import PrefixSession
from cme_bench.engines.hf.tree_attention import KeptPrefix
from cme_bench.engines.packs import Pack, Unit, chain
from cme_bench.engines.requests import TokenIds

Group: TypeAlias = tuple[list[int], int]
"""Rows, and how many tokens they share."""


def join_groups(
    groups: Sequence[Group], sizes: Sequence[int], *, tokens: int, most: int
) -> Iterator[list[Group]]:
    """Yield groups that are decoded together, in order: by themselves those that share nothing, and those
    that fill a batch.

    ``sizes``: of each group, the tokens of its longest row beyond what it shares; at most ``tokens`` of
    rows are joined, rows padded, and at most ``most`` of prefixes.
    """
    waiting: list[Group] = []
    rows = longest = kept = 0
    for (members, prefix), size in zip(groups, sizes, strict=True):
        alone = not prefix or prefix > most or len(members) * size > tokens // 2
        wide = (rows + len(members)) * max(longest, size) > tokens or kept + prefix > most
        if waiting and (alone or wide):
            yield waiting
            waiting, rows, longest, kept = [], 0, 0, 0
        if alone:
            yield [(members, prefix)]
            continue
        waiting.append((members, prefix))
        rows, longest, kept = rows + len(members), max(longest, size), kept + prefix
    if waiting:
        yield waiting


def prefix_packs(prefixes: Sequence[TokenIds], most: int) -> Iterator[Pack]:
    """Yield packs that compute prefixes side by side, at most ``most`` tokens each, and read nothing."""
    units: list[Unit] = []
    for prefix in prefixes:
        if units and sum(len(unit.tokens) for unit in units) + len(prefix) > most:
            yield Pack(0, True, tuple(units))
            units = []
        units.append(chain(prefix))
    if units:
        yield Pack(0, True, tuple(units))


@dataclass(frozen=True, slots=True)
class _Part:
    """Where a prefix lies among what a pack kept."""

    kept: KeptPrefix
    start: int
    stop: int


class JoinedPrefixes:
    """Keys and values of several prefixes, by attention module, padded to the longest."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._joined: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def add(self, pack: Pack, kept: KeptPrefix) -> None:
        """Take the prefixes that ``pack`` computed, in order."""
        starts = pack.starts.tolist()
        self._parts += [_Part(kept, *ends) for ends in pairwise(starts)]

    @property
    def lengths(self) -> list[int]:
        """The tokens of each prefix."""
        return [part.stop - part.start for part in self._parts]

    @property
    def width(self) -> int:
        """The tokens of the longest, rounded up to what kernels take."""
        return -(-max(self.lengths) // ALIGNED_KEYS) * ALIGNED_KEYS

    def of(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Return keys and values, each [prefixes, key heads, width, size]."""
        if module not in self._joined:
            found = [part.kept.head(module, part.stop) for part in self._parts]
            self._joined[module] = self._padded([k for k, _ in found]), self._padded([v for _, v in found])
            for kept in {id(part.kept): part.kept for part in self._parts}.values():
                kept.free(module)
        return self._joined[module]

    def _padded(self, states: Sequence[Tensor]) -> Tensor:
        like = states[0]
        joined = like.new_zeros(len(states), like.shape[1], self.width, like.shape[3])
        for row, part, found in zip(joined, self._parts, states, strict=True):
            row[:, : part.stop - part.start] = found[0, :, part.start :]
        return joined


class JoinedSession(PrefixSession):
    """Decode rows after prefixes of their own. A :class:`generate.DecodingSession`.

    ``owners``: of each row, the number of its prefix. Rows of a prefix lie side by side for the attention
    over it, in as many slots as the most frequent one has rows.
    """

    def __init__(self, forward: CausalForward, prefixes: JoinedPrefixes, owners: Sequence[int]) -> None:
        super().__init__(forward, KeptPrefix(), max(prefixes.lengths))
        self._prefixes = prefixes
        self._lengths = torch.tensor(prefixes.lengths, device=self.device)
        self._lay(torch.tensor(owners))

    def _lay(self, owners: Tensor) -> None:
        """Give each row a slot, the ``i``-th of its prefix, and each slot a row; spare slots have the
        first."""
        self._owners = owners
        count, rows = len(self._prefixes.lengths), len(owners)
        nth = (owners[:, None] == owners[None]).tril(-1).sum(1)
        self._each = int(nth.max()) + 1
        slots = owners * self._each + nth
        row_of = torch.zeros(count * self._each, dtype=torch.int64)
        row_of[slots] = torch.arange(rows)
        self._slot_of_row, self._row_of_slot = slots.to(self.device), row_of.to(self.device)
        self._starts = self._lengths[owners.to(self.device)][:, None]
        self._beyond: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def select(self, kept: Tensor) -> None:
        super().select(kept)
        self._lay(self._owners[kept.cpu()])

    def _positions(self, n: int) -> Tensor:
        own = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -n:]
        return self._starts.to(own.device) + own

    def _over_prefix(self, call: AttentionCall, first: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        folded = fold(call.query, call.groups)  # [rows, key heads, groups * n, size]
        _, heads, width, size = folded.shape
        count, device = len(self._prefixes.lengths), folded.device
        keys, values = self._prefixes.of(call.module)
        slots = folded.index_select(0, self._row_of_slot.to(device))
        slots = slots.reshape(count, self._each, heads, width, size).transpose(1, 2)
        laid = slots.reshape(count, heads, self._each * width, size)
        seen, lse = call.attend(laid, keys, values, mask=self._unseen(laid))
        return self._rows(seen, width), self._rows(lse[..., None], width)[..., 0]

    def _rows(self, laid: Tensor, width: int) -> Tensor:
        """Return what lies in slots, [prefixes, key heads, slots * width, size], by rows."""
        count, heads, _, size = laid.shape
        slots = laid.reshape(count, heads, self._each, width, size).transpose(1, 2).flatten(0, 1)
        return slots.index_select(0, self._slot_of_row.to(laid.device))

    def _unseen(self, laid: Tensor) -> Tensor | None:
        """Return a mask [prefixes, 1, slots * width, kept] of the padding of shorter prefixes, None if none
        is shorter."""
        count, width = len(self._lengths), self._prefixes.width
        if min(self._prefixes.lengths) == width:
            return None
        key = (laid.shape[2], laid.dtype, laid.device)
        if key not in self._beyond:
            real = torch.arange(width, device=laid.device) < self._lengths.to(laid.device)[:, None]
            self._beyond[key] = additive(real[:, None, None].expand(count, 1, key[0], width), laid.dtype)
        return self._beyond[key]
