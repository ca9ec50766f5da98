"""Which slot each token of a step belongs to, in tensors that stay where they are: graphs read them there.

Tokens are put in order of their slots, the base model's last, and cut into tiles of one slot each, for
kernels that multiply a tile by one adapter's matrices. Made once a step, on the CPU, and copied at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

TILES = (16, 32, 64, 128)
"""Most tokens of a tile; every size has a table of its own."""
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
        numbers = [TILE * self.most_tiles(self.max_tokens, size) for size in TILES]
        sizes = [-(-n // ALIGNMENT) * ALIGNMENT for n in (self.max_tokens, self.max_tokens, *numbers)]
        self._all = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        self.slots, self.order, *tables = torch.split(self._all, sizes)
        self.tiles: dict[int, torch.Tensor] = dict(zip(TILES, tables, strict=True))
        self._edges = np.cumsum([0, *sizes])
        self.counters = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
        self.groups: list[tuple[int, torch.Tensor]] = []
        self.set(np.zeros(0, np.int32))

    def most_tiles(self, tokens: int, size: int) -> int:
        """Return how many tiles of ``size`` hold so many tokens, whatever they belong to."""
        return -(-tokens // size) + self.n_slots

    def set(self, slots: npt.NDArray[np.int32]) -> None:
        """Begin a step whose tokens belong to ``slots``; what a graph adds to them is the base model's."""
        if len(slots) > self.max_tokens:
            raise ValueError(f"a step of {len(slots)} tokens, where {self.max_tokens} were expected")
        # A new one each time: the device may not have copied the last one yet.
        staged = torch.zeros(len(self._all), dtype=torch.int32, device="cpu", pin_memory=self._all.is_cuda)
        views = np.split(staged.numpy(), self._edges[1:-1])
        views[0][: len(slots)] = slots
        order, base = np.argsort(slots, kind="stable"), np.count_nonzero(slots == 0)
        views[1][: len(slots)] = np.roll(order, -base)
        views[1][len(slots) : self.max_tokens] = np.arange(len(slots), self.max_tokens)
        counts = np.roll(np.bincount(slots, minlength=self.n_slots + 1), -1)
        counts[-1] += self.max_tokens - len(slots)
        for size, table in zip(TILES, views[2:], strict=True):
            _fill(table.reshape(-1, TILE), counts, size)
        self._all.copy_(staged, non_blocking=True)
        counts = counts[:-1]
        stops = np.cumsum(counts)
        self.groups = [
            (slot + 1, self.order[stops[slot] - counts[slot] : stops[slot]])
            for slot in np.flatnonzero(counts)
        ]


def _fill(table: npt.NDArray[np.int32], counts: npt.NDArray[np.int64], size: int) -> None:
    """Write the tiles of slots, and of the base model, that have ``counts`` tokens each, one after the
    other."""
    tiles = -(-counts // size)
    total, stops = int(tiles.sum()), np.cumsum(counts)
    slot = np.repeat(np.arange(len(counts)), tiles)
    within = np.arange(total) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    first = (stops - counts)[slot] + within * size
    table[:total] = np.stack([slot, first, np.minimum(first + size, stops[slot])], axis=1)
    table[total:] = -1
