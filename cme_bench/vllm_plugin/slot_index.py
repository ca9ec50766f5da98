"""Which slot each token of a step belongs to, in tensors that stay where they are: graphs read them there.

Tokens are put in order of their slots, the base model's last, and cut into tiles of one slot each, for
kernels that multiply a tile by one adapter's matrices. Made once a step, on the CPU, and copied at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

TILES = {16: 128, 32: 512, 64: 2048, 128: 1 << 30}
"""Most tokens of a tile, and of a step that may be cut into such tiles; every size has a table of its own."""
TILE = 3
"""Numbers of a tile: its slot, and its first and last + 1 place. Slots count from 0 here; behind the last is
the base model, and -1 is no tile."""
ALIGNMENT = 96
"""Each tensor begins at a multiple of so many numbers: of whole tiles, and of 128 bytes."""
SPARE = 1024
"""Tokens beyond the most that a step has, to which a graph may pad it."""
COUNTERS = 4096
"""More than kernels that share a sum have of tiles and pieces: with more of them they share none."""


class SlotIndex:
    """Hold ``slots`` (tokens,), 0 for the base model; ``order``, places of tokens by slot; ``tiles``.

    ``groups``: the slots of the step, each with the places of its tokens, for code that runs step by step.
    ``counters``: zeros with which programs of a kernel count each other, and which they leave as zeros.
    """

    def __init__(self, max_tokens: int, slots: int, device: torch.device | None = None) -> None:
        self.n_slots = slots
        self.max_tokens = max_tokens + SPARE
        most = [min(most, self.max_tokens) for most in TILES.values()]
        numbers = [TILE * self.most_tiles(n, size) for n, size in zip(most, TILES, strict=True)]
        sizes = [-(-n // ALIGNMENT) * ALIGNMENT for n in (self.max_tokens, self.max_tokens, *numbers)]
        self._all = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        self.slots, self.order, *tables = torch.split(self._all, sizes)
        self.tiles: dict[int, torch.Tensor] = dict(zip(TILES, tables, strict=True))
        self._edges = np.cumsum([0, *sizes])
        self.counters = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
        self.groups: list[tuple[int, torch.Tensor]] = []
        self._last: npt.NDArray[np.int32] | None = None
        self.set(np.zeros(0, np.int32))

    def most_tiles(self, tokens: int, size: int) -> int:
        """Return how many tiles of ``size`` hold so many tokens, whatever they belong to."""
        return -(-tokens // size) + self.n_slots

    def set(self, slots: npt.NDArray[np.int32]) -> None:
        """Begin a step whose tokens belong to ``slots``; what a graph adds to them is the base model's."""
        if len(slots) > self.max_tokens:
            raise ValueError(f"a step of {len(slots)} tokens, where {self.max_tokens} were expected")
        if self._last is not None and np.array_equal(slots, self._last):
            return  # as in most steps that generate: each request has one token again
        # A new one each time: the device may not have copied the last one yet.
        staged = torch.zeros(len(self._all), dtype=torch.int32, device="cpu", pin_memory=self._all.is_cuda)
        views = np.split(staged.numpy(), self._edges[1:-1])
        views[0][: len(slots)] = slots
        counts = np.bincount(slots, minlength=self.n_slots + 1)[1:]
        base = len(slots) - int(counts.sum())
        views[1][: len(slots)] = np.roll(np.argsort(slots, kind="stable"), -base)
        views[1][len(slots) : self.max_tokens] = np.arange(len(slots), self.max_tokens)
        stops = np.cumsum(counts)
        for (size, most), table in zip(TILES.items(), views[2:], strict=True):
            table.fill(-1)
            if len(slots) <= most:  # a graph may pad the step, but never shortens it
                places = min(most, self.max_tokens)
                rows = _tiles([*stops.tolist(), max(places, int(stops[-1]))], size)
                table[: len(rows)] = rows
        self._all.copy_(staged, non_blocking=True)
        self.groups = [
            (slot + 1, self.order[stops[slot] - counts[slot] : stops[slot]])
            for slot in np.flatnonzero(counts)
        ]
        self._last = slots.copy()


def _tiles(stops: list[int], size: int) -> list[int]:
    """Return the tiles of slots, and behind them of the base model, whose places end at ``stops``."""
    found, start = [], 0
    for slot, stop in enumerate(stops):
        for first in range(start, stop, size):
            found += [slot, first, min(first + size, stop)]
        start = stop
    return found
