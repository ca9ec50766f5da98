"""Rows of tokens as a trie, without nodes: sorted, with the length that each shares with the one before."""

from __future__ import annotations

import array
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cme_bench.engines.packs import Ints, Unit
from cme_bench.engines.requests import TokenIds


class SortedRows:
    """Sort rows by their tokens and know what neighbours share: a trie without nodes."""

    def __init__(self, rows: Sequence[tuple[TokenIds, TokenIds]]) -> None:
        contexts = {id(context): context for context, _ in rows}
        most = max(map(max, itertools.chain(contexts.values(), (ids for _, ids in rows))))
        code = "H" if most < 1 << 16 else "I" if most < 1 << 32 else "Q"  # Q: ids of images
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
        """Count trie tokens of rows [low, high), which share the ``start`` first, from there on."""
        return int(self.length[low] - start + self._tokens[high] - self._tokens[low + 1])

    def scored(self, low: int, high: int, start: int) -> int:
        """Count about how many of those have logits that are needed."""
        first = self.length[low] - max(int(self.first_read[low]), start)
        return int(first + self._scored[high] - self._scored[low + 1])

    def common(self, low: int, high: int) -> int:
        """Return how many tokens rows [low, high) share."""
        return int(self.length[low] if high - low == 1 else self.shared[low + 1 : high].min())

    def prefix(self, low: int, high: int, most: int) -> int:
        """Return how many tokens rows [low, high) share: less than any of them has, and ``most`` at most."""
        return min(self.common(low, high), int(self.length[low:high].min()) - 1, most)

    def children(self, low: int, high: int, common: int) -> list[tuple[int, int]]:
        """Return the ranges of rows that part after ``common`` tokens."""
        cuts = np.flatnonzero(self.shared[low + 1 : high] == common) + low + 1
        bounds = [low, *cuts.tolist(), high]
        return list(itertools.pairwise(bounds))

    def chain(self, low: int, high: int, start: int, stop: int) -> Unit:
        """Return the chunk [start, stop) of what rows [low, high) share."""
        reads = _Reads()
        for r in (np.flatnonzero(self.first_read[low:high] < stop) + low).tolist():
            first = int(self.first_read[r])
            depths = np.arange(max(first, start), min(stop, int(self.length[r])))
            targets = np.array(self.targets[r], dtype=np.int64)[depths - first]
            reads.add(depths - start, targets, self.row[r])
        n = stop - start
        tokens = self.ids[low][start:stop].astype(np.int64)
        return Unit(tokens, np.arange(start, stop), np.full(n, n), *reads.joined())

    def block(self, low: int, high: int, start: int) -> Unit:
        """Return all tokens of rows [low, high) from depth ``start`` on."""
        n = self.tokens(low, high, start)
        tokens, positions, end = np.empty(n, np.int64), np.empty(n, np.int64), np.full(n, n)
        # where the tokens of the row in work stand, by depth from start; rows share what lies below `shared`
        places = np.empty(int(self.length[low:high].max()) - start, np.int64)
        reads = _Reads()
        count, length_before = 0, start
        for r in range(low, high):
            length, first = int(self.length[r]), int(self.first_read[r])
            shared = start if r == low else int(self.shared[r])
            end[places[shared - start : length_before - start]] = count
            new = slice(count, count + length - shared)
            tokens[new] = self.ids[r][shared:]
            positions[new] = np.arange(shared, length)
            places[shared - start : length - start] = np.arange(new.start, new.stop)
            read_from = max(first, start)
            targets = np.array(self.targets[r][read_from - first :], dtype=np.int64)
            reads.add(places[read_from - start : length - start].copy(), targets, self.row[r])
            count, length_before = new.stop, length
        return Unit(tokens, positions, end, *reads.joined())


@dataclass(slots=True)
class _Reads:
    """Collect what rows read from a unit's logits: places, target tokens, and the row, [reads] each."""

    places: list[Ints] = field(default_factory=list)
    targets: list[Ints] = field(default_factory=list)
    rows: list[Ints] = field(default_factory=list)

    def add(self, places: Ints, targets: Ints, row: int) -> None:
        """Add the reads of one row."""
        self.places.append(places)
        self.targets.append(targets)
        self.rows.append(np.full(len(places), row))

    def joined(self) -> tuple[Ints, Ints, Ints]:
        """Return ``(places, targets, rows)``."""
        return _joined(self.places), _joined(self.targets), _joined(self.rows)


def _big_endian(code: str, ids: TokenIds) -> bytes:
    """Return bytes that compare like the ids."""
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
    """Return [n + 1], the sums of the first i values."""
    return np.concatenate(([0], np.cumsum(values)))


def _joined(parts: list[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
