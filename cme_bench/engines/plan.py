"""The planner: likelihood rows become a token trie, and the trie becomes packs that compute every shared
prefix once.

A row feeds ``context + continuation[:-1]``; sorted rows and the length of what each shares with the one
before it (``shared``) are the trie. A subtree is a range of sorted rows. From the root down, a subtree is

* a **block** if what lies below its common prefix is small: its tokens go through the network together, each
  token seeing its own ancestors only;
* a **trunk** if its common prefix is worth a forward of its own: the prefix is computed once, in chunks, its
  keys and values are kept while the subtree is worked on, and given up when it is done (depth first, so the
  prefixes kept at any time are those of one row);
* dissolved otherwise: its children repeat the few tokens they share.

Blocks that hang on one trunk travel together in packs of bounded size. What is kept therefore never exceeds
the longest row, nor ``PlanLimits.kept_tokens``: a prefix beyond that is computed again instead.

Nothing here knows of tensors; packs depend on the rows' tokens only, not on their order.
"""

from __future__ import annotations

import array
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cme_bench.engines.base import TokenIds

Ints: TypeAlias = NDArray[np.int64]


@dataclass(slots=True)
class PlanLimits:
    """What a plan may use. May shrink while a plan is read: packs made later obey.

    ``pack_tokens``: most tokens of a pack. ``pack_scored``: most places of a pack whose logits are needed. A
    single block may exceed both if it cannot be divided. ``block_tokens``: most tokens of a block below its
    common prefix (they all attend within one mask). ``forward_tokens``: how many tokens more in a forward
    cost as much time as one more forward. ``kept_tokens``: longest prefix whose keys and values are kept.
    """

    pack_tokens: int
    pack_scored: int
    block_tokens: int
    forward_tokens: int
    kept_tokens: int


@dataclass(frozen=True, slots=True)
class Unit:
    """A subtree, or a chunk of a trunk, in depth-first order.

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


@dataclass(frozen=True)
class Pack:
    """What one forward computes: units side by side, none of which sees another.

    ``cached`` tokens of the path in work come before every unit; what the path holds beyond them is done
    with. ``keep``: the pack is one chain, and extends the path.
    """

    cached: int
    keep: bool
    units: tuple[Unit, ...]

    @property
    def n_tokens(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> Ints:
        """[units + 1], where each unit begins, and the number of tokens."""
        return np.cumsum([0, *(len(unit.tokens) for unit in self.units)])

    @cached_property
    def tokens(self) -> Ints:
        return np.concatenate([unit.tokens for unit in self.units])

    @cached_property
    def positions(self) -> Ints:
        return np.concatenate([unit.positions for unit in self.units])

    @cached_property
    def reads(self) -> tuple[Ints, Ints, Ints, Ints]:
        """``(places, index, target, row)``: distinct places [scored] of this pack, ascending; and for every
        read its index among them, the token scored and the row, [reads] each."""
        place = np.concatenate(
            [unit.read_place + start for unit, start in zip(self.units, self.starts[:-1], strict=True)]
        )
        places, index = np.unique(place, return_inverse=True)
        target = np.concatenate([unit.read_target for unit in self.units])
        row = np.concatenate([unit.read_row for unit in self.units])
        return places, index, target, row

    def split(self) -> tuple[Pack, Pack] | None:
        """Two packs of about half the size, to be run one after the other; None if it cannot be divided."""
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


def plan_packs(rows: Sequence[tuple[TokenIds, TokenIds]], limits: PlanLimits) -> Iterator[Pack]:
    """Packs that together score every ``(context, continuation)`` of ``rows``; neither part is empty.

    Every token of a continuation is one read of row ``i``, its index in ``rows``. Packs must be run in order.
    """
    if rows:
        yield from _Planner(SortedRows(rows), limits).packs()


def plan_groups(prompts: Sequence[TokenIds], limits: PlanLimits) -> Iterator[tuple[list[int], int]]:
    """``(indices, prefix)``: prompts that are continued together, and how many tokens they share.

    Every prompt keeps at least one token of its own. A prefix is shared where that saves more than the
    forward that computes it costs; prompts that share nothing come last, as one group with prefix 0.
    """
    alone: list[int] = []
    if prompts:
        rows = SortedRows([(prompt, (0,)) for prompt in prompts])
        work = [(0, len(prompts))]
        while work:
            low, high = work.pop()
            prefix = rows.prefix(low, high, limits.kept_tokens)
            gain = prefix * (high - low - 1)
            if high - low > 1:
                children = rows.children(low, high, rows.common(low, high))
                deeper = [rows.prefix(a, b, limits.kept_tokens) * (b - a - 1) for a, b in children]
                if sum(max(0, g - limits.forward_tokens) for g in deeper) > gain - limits.forward_tokens:
                    work += reversed(children)
                    continue
            if gain >= limits.forward_tokens:
                yield sorted(rows.row[low:high].tolist()), prefix
            else:
                alone += rows.row[low:high].tolist()
    if alone:
        yield sorted(alone), 0


def chain_packs(tokens: TokenIds, limits: PlanLimits) -> Iterator[Pack]:
    """Packs that compute and keep ``tokens``, and read nothing."""
    nothing = np.empty(0, np.int64)
    for start in range(0, len(tokens), limits.pack_tokens):
        part = np.array(tokens[start : start + limits.pack_tokens])
        n = len(part)
        positions = np.arange(start, start + n)
        yield Pack(start, True, (Unit(part, positions, np.full(n, n), nothing, nothing, nothing),))


class SortedRows:
    """Rows in the order of their tokens, and what neighbours share: a trie without nodes."""

    def __init__(self, rows: Sequence[tuple[TokenIds, TokenIds]]) -> None:
        contexts = {id(context): context for context, _ in rows}
        most = max(map(max, itertools.chain(contexts.values(), (ids for _, ids in rows))))
        code = "H" if most < 1 << 16 else "I"
        width = array.array(code).itemsize
        heads = {name: _big_endian(code, context) for name, context in contexts.items()}
        keys = [heads[id(context)] + _big_endian(code, continuation[:-1]) for context, continuation in rows]
        # equal keys are ordered by what they score, so that the plan is the same for any order of the rows
        order = sorted(range(len(rows)), key=lambda i: (keys[i], len(rows[i][0]), rows[i][1]))
        self.row = np.array(order)
        self.ids = [np.frombuffer(keys[i], dtype=f">u{width}") for i in order]
        self.length: Ints = np.array([len(ids) for ids in self.ids])
        self.first_read: Ints = np.array([len(rows[i][0]) - 1 for i in order])
        self.targets = [rows[i][1] for i in order]
        self.shared: Ints = np.array([0, *(_common(a, b) for a, b in itertools.pairwise(self.ids))])
        self._tokens = _sums(self.length - self.shared)
        self._scored = _sums(self.length - np.maximum(self.first_read, self.shared))

    def tokens(self, low: int, high: int, start: int) -> int:
        """Trie tokens of rows [low, high) at depth ``start`` or more; they share the ``start`` first."""
        return int(self.length[low] - start + self._tokens[high] - self._tokens[low + 1])

    def scored(self, low: int, high: int, start: int) -> int:
        """About as many of those have logits that are needed."""
        first = self.length[low] - max(int(self.first_read[low]), start)
        return int(first + self._scored[high] - self._scored[low + 1])

    def common(self, low: int, high: int) -> int:
        """Tokens that rows [low, high) share."""
        return int(self.length[low] if high - low == 1 else self.shared[low + 1 : high].min())

    def prefix(self, low: int, high: int, most: int) -> int:
        """What rows [low, high) share, less than any of them and ``most`` at most."""
        return min(self.common(low, high), int(self.length[low:high].min()) - 1, most)

    def children(self, low: int, high: int, common: int) -> list[tuple[int, int]]:
        """Ranges of rows that part after ``common`` tokens."""
        cuts = np.flatnonzero(self.shared[low + 1 : high] == common) + low + 1
        bounds = [low, *cuts.tolist(), high]
        return list(itertools.pairwise(bounds))

    def chain(self, low: int, high: int, start: int, stop: int) -> Unit:
        """The chunk [start, stop) of what rows [low, high) share."""
        places, targets, rows = [], [], []
        for r in (np.flatnonzero(self.first_read[low:high] < stop) + low).tolist():
            first = int(self.first_read[r])
            depths = np.arange(max(first, start), min(stop, int(self.length[r])))
            places.append(depths - start)
            targets.append(np.array(self.targets[r], dtype=np.int64)[depths - first])
            rows.append(np.full(len(depths), self.row[r]))
        n = stop - start
        tokens = self.ids[low][start:stop].astype(np.int64)
        return Unit(tokens, np.arange(start, stop), np.full(n, n), *map(_joined, (places, targets, rows)))

    def block(self, low: int, high: int, start: int) -> Unit:
        """All tokens of rows [low, high) from depth ``start`` on."""
        n = self.tokens(low, high, start)
        tokens, positions, end = np.empty(n, np.int64), np.empty(n, np.int64), np.full(n, n)
        path = np.empty(int(self.length[low:high].max()) - start, np.int64)  # place by depth, of one row
        places, targets, rows = [], [], []
        done = depth = start
        count = 0
        for r in range(low, high):
            length, first = int(self.length[r]), int(self.first_read[r])
            kept = start if r == low else int(self.shared[r])
            end[path[kept - start : depth - start]] = count
            new = slice(count, count + length - kept)
            tokens[new] = self.ids[r][kept:]
            positions[new] = np.arange(kept, length)
            path[kept - start : length - start] = np.arange(new.start, new.stop)
            count, depth = new.stop, length
            done = max(first, start)
            places.append(path[done - start : length - start].copy())
            targets.append(np.array(self.targets[r][done - first :], dtype=np.int64))
            rows.append(np.full(length - done, self.row[r]))
        return Unit(tokens, positions, end, *map(_joined, (places, targets, rows)))


class _Planner:
    def __init__(self, rows: SortedRows, limits: PlanLimits) -> None:
        self.rows = rows
        self.limits = limits

    def packs(self) -> Iterator[Pack]:
        trunks = [(0, len(self.rows.length), 0, 0)]  # rows, tokens kept already, tokens kept then
        while trunks:
            low, high, start, stop = trunks.pop()
            yield from self._chain_packs(low, high, start, stop)
            blocks, deeper = self._expand(low, high, stop)
            yield from self._block_packs(blocks, stop)
            trunks += reversed(deeper)

    def _chain_packs(self, low: int, high: int, start: int, stop: int) -> Iterator[Pack]:
        while start < stop:
            until = min(stop, start + self._chunk)
            yield Pack(start, True, (self.rows.chain(low, high, start, until),))
            start = until

    @property
    def _chunk(self) -> int:
        return min(self.limits.pack_tokens, self.limits.pack_scored)

    def _expand(
        self, low: int, high: int, start: int
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int, int, int]]]:
        """Blocks and trunks of rows [low, high), which share the ``start`` first tokens."""
        rows, limits = self.rows, self.limits
        blocks: list[tuple[int, int]] = []
        trunks: list[tuple[int, int, int, int]] = []
        work = [(low, high)]
        while work:
            low, high = work.pop()
            size = rows.tokens(low, high, start)
            if size == 0:
                continue
            common = rows.common(low, high)
            below = size - (common - start)
            scored = rows.scored(low, high, start)
            fits = size <= limits.pack_tokens and scored <= limits.pack_scored
            connected = common > start or below == 0
            if connected and fits and below <= limits.block_tokens:
                blocks.append((low, high))
            elif below == 0:
                stop = min(start + (size - 1) // self._chunk * self._chunk, limits.kept_tokens)
                if stop > start:
                    trunks.append((low, high, start, stop))
                else:
                    blocks.append((low, high))
            else:
                children = rows.children(low, high, common)
                gain = (common - start) * (len(children) - 1)
                if start < common <= limits.kept_tokens and gain >= limits.forward_tokens:
                    trunks.append((low, high, start, common))
                else:
                    work += reversed(children)
        return blocks, trunks

    def _block_packs(self, blocks: list[tuple[int, int]], start: int) -> Iterator[Pack]:
        """Largest blocks first, so that blocks of a pack are of like size: as rows of the largest's length,
        they take up twice ``pack_tokens`` at most."""
        rows, limits = self.rows, self.limits
        sized = [(rows.tokens(low, high, start), low, high) for low, high in blocks]
        sized.sort(key=lambda block: -block[0])
        units: list[Unit] = []
        tokens = scored = 0
        for size, low, high in sized:
            needed = rows.scored(low, high, start)
            if units and (
                tokens + size > limits.pack_tokens
                or scored + needed > limits.pack_scored
                or (len(units) + 1) * len(units[0].tokens) > 2 * limits.pack_tokens
            ):
                yield Pack(start, False, tuple(units))
                units, tokens, scored = [], 0, 0
            units.append(rows.block(low, high, start))
            tokens += size
            scored += needed
        if units:
            yield Pack(start, False, tuple(units))


def _big_endian(code: str, ids: TokenIds) -> bytes:
    """Bytes that compare like the ids."""
    values = array.array(code, ids)
    if sys.byteorder == "little":
        values.byteswap()
    return values.tobytes()


def _common(a: NDArray[np.unsignedinteger], b: NDArray[np.unsignedinteger]) -> int:
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax()) if n else 0
    return first if n and differs[first] else n


def _sums(values: Ints) -> Ints:
    """[n + 1]; the sum of the first i."""
    return np.concatenate(([0], np.cumsum(values)))


def _joined(parts: list[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
