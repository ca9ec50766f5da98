"""Packs: what one forward of the network computes, and what is read from its logits. No tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cme_bench.engines.requests import TokenIds

Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Unit:
    """Hold a subtree, or a chunk of a trunk, in depth-first order.

    tokens, positions: [n], ids and their places in the row.
    end: [n]; token j is an ancestor of token i if ``j <= i < end[j]``.
    read_place, read_target, read_row: [reads]; the token id that is scored by the logits at a place of this
    unit, and the row that asks for it.
    """

    tokens: Ints
    positions: Ints
    end: Ints
    read_place: Ints
    read_target: Ints
    read_row: Ints


def chain(tokens: TokenIds | Ints, start: int = 0) -> Unit:
    """Return the unit of a row's tokens from position ``start`` on, of which nothing is read."""
    n, nothing = len(tokens), np.empty(0, np.int64)
    positions = np.arange(start, start + n)
    return Unit(np.array(tokens), positions, np.full(n, n), nothing, nothing, nothing)


@dataclass(frozen=True)
class Pack:
    """Hold what one forward computes: units side by side, none of which sees another.

    ``cached`` tokens of the kept prefix come before every unit; what is kept beyond them is done with.
    ``keep``: the pack is one chain, and extends the kept prefix.
    """

    cached: int
    keep: bool
    units: tuple[Unit, ...]

    @property
    def packs(self) -> tuple[Pack, ...]:
        """Return itself, as a sequence of packs has it."""
        return (self,)

    @property
    def n_tokens(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> Ints:
        """Return [units + 1], where each unit begins, and the number of tokens."""
        return np.cumsum([0, *(len(unit.tokens) for unit in self.units)])

    @cached_property
    def tokens(self) -> Ints:
        return np.concatenate([unit.tokens for unit in self.units])

    @cached_property
    def positions(self) -> Ints:
        return np.concatenate([unit.positions for unit in self.units])

    @cached_property
    def reads(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Return ``(places, index, target, row)`` of what is read from the logits.

        ``places`` [scored]: distinct places of this pack, ascending. ``index``, ``target``, ``row`` [reads]:
        for every read its index among the places, the token scored and the row.
        """
        place = np.concatenate(
            [unit.read_place + start for unit, start in zip(self.units, self.starts[:-1], strict=True)]
        )
        places, index = np.unique(place, return_inverse=True)
        target = np.concatenate([unit.read_target for unit in self.units])
        row = np.concatenate([unit.read_row for unit in self.units])
        return places, index, target, row

    def split(self) -> tuple[Pack, Pack] | None:
        """Return two packs of about half the size, to be run in order; None if it cannot be divided."""
        if len(self.units) > 1:
            half = len(self.units) // 2
            return (
                Pack(self.cached, self.keep, self.units[:half]),
                Pack(self.cached, self.keep, self.units[half:]),
            )
        if not self.keep or self.n_tokens == 1:
            return None
        unit, half = self.units[0], self.n_tokens // 2
        return (
            Pack(self.cached, True, (_slice_chain(unit, 0, half),)),
            Pack(self.cached + half, True, (_slice_chain(unit, half, self.n_tokens),)),
        )


@dataclass(frozen=True)
class PackSequence:
    """Hold packs that go through the network in one forward; each sees what those before it keep."""

    packs: tuple[Pack, ...]

    @property
    def cached(self) -> int:
        return self.packs[0].cached

    @property
    def units(self) -> tuple[Unit, ...]:
        return tuple(unit for pack in self.packs for unit in pack.units)

    @cached_property
    def n_tokens(self) -> int:
        return sum(pack.n_tokens for pack in self.packs)

    @cached_property
    def tokens(self) -> Ints:
        return np.concatenate([pack.tokens for pack in self.packs])

    @cached_property
    def positions(self) -> Ints:
        return np.concatenate([pack.positions for pack in self.packs])

    @cached_property
    def reads(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Return what :attr:`Pack.reads` does, of all packs, one after the other."""
        found, tokens, scored = [], 0, 0
        for pack in self.packs:
            places, index, target, row = pack.reads
            found.append((places + tokens, index + scored, target, row))
            tokens += pack.n_tokens
            scored += len(places)
        places, index, target, row = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return places, index, target, row

    def split(self) -> tuple[PackSequence, PackSequence] | None:
        """Return two sequences, to be run in order; None if it cannot be divided."""
        if len(self.packs) > 1:
            half = len(self.packs) // 2
            return PackSequence(self.packs[:half]), PackSequence(self.packs[half:])
        halves = self.packs[0].split()
        return None if halves is None else (PackSequence(halves[:1]), PackSequence(halves[1:]))


def _slice_chain(unit: Unit, start: int, stop: int) -> Unit:
    read = (unit.read_place >= start) & (unit.read_place < stop)
    return Unit(
        unit.tokens[start:stop],
        unit.positions[start:stop],
        np.full(stop - start, stop - start),
        unit.read_place[read] - start,
        unit.read_target[read],
        unit.read_row[read],
    )
