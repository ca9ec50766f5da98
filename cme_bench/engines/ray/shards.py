"""Whole questions, cut so that those that share a prefix stay together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cme_bench.engines.base import GenerateRequest, Request
from cme_bench.engines.sorted_rows import SortedRows

PORTION = 1 / 2
"""The next shard is this part of what a worker has left.

It is large at first, so that prefixes are seldom computed twice and batches are full. It is small at the end,
so that workers finish together."""
LEAST, MOST = 16, 2048
"""Bounds of the questions of a shard, where there are so many."""
QUESTION_TOKENS = 64
"""A question costs as much as so many tokens more: on a fast GPU a small model takes as long for a short
question as for a long one."""
PREFIXES = 8
"""A shard is at least so many times its own common prefix, which it computes again."""
DRIFT = 8
"""A cut may move by so many tokens for each token that neighbours there share less."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Name the requests that a worker gets together.

    ``requests``: numbers, in the order of their tokens. ``cost``: about as many tokens are computed.
    ``suspected``: a worker died that had these and others; ``deaths``: workers that died with this request
    alone, if it is one.
    """

    requests: tuple[int, ...]
    cost: int
    suspected: bool = False
    deaths: int = 0

    def __len__(self) -> int:
        return len(self.requests)


def plan_shards(requests: Sequence[Request], workers: int) -> list[deque[Shard]]:
    """Return a queue of shards for each worker, of about the same cost.

    A shard holds neighbours in the order of tokens; it is cut where they share little. Every request is in
    one shard. The plan depends on nothing but its arguments.
    """
    queues: list[deque[Shard]] = [deque() for _ in range(workers)]
    if not requests:
        return queues
    rows = SortedRows([(request.prompt, (0,)) for request in requests])
    apart = np.array([_cost_after_prompt(requests[i]) for i in rows.row.tolist()])
    cutter = _Cutter(rows, np.concatenate(([0], np.cumsum(rows.length - rows.shared + apart))))
    start, n = 0, len(requests)
    for worker, queue in enumerate(queues):
        stop = cutter.cut(start, n, cutter.share(start, n, 1 / (workers - worker)))
        queue.extend(cutter.shards(start, stop))
        start = stop
    return queues


def _cost_after_prompt(request: Request) -> int:
    """Return the cost of a question without its prompt, in tokens."""
    if isinstance(request, GenerateRequest):
        return QUESTION_TOKENS + request.n_new
    return QUESTION_TOKENS + sum(len(continuation) for _, continuation in request.rows)


class _Cutter:
    """Cut sorted rows into shards. ``costs``: [n + 1], of the first i rows."""

    def __init__(self, rows: SortedRows, costs: NDArray[np.int64]) -> None:
        self.rows = rows
        self.costs = costs

    def share(self, low: int, high: int, portion: float) -> int:
        """Return how many rows from ``low`` have this portion of the cost of [low, high)."""
        wanted = self.costs[low] + portion * (self.costs[high] - self.costs[low])
        return int(np.searchsorted(self.costs[low : high + 1], wanted, side="left"))

    def cut(self, low: int, high: int, count: int) -> int:
        """Return where to end a shard of about ``count`` rows from ``low``: at ``high`` at the latest."""
        middle = low + count
        if middle >= high:
            return high
        first, last = max(low + 1, middle - count // 2), min(high - 1, middle + count // 2)
        candidates = slice(first, last + 1)
        away = abs(self.costs[candidates] - self.costs[middle])
        return first + int(np.argmin(DRIFT * self.rows.shared[candidates] + away))

    def shards(self, low: int, high: int) -> list[Shard]:
        """Return [low, high) in shards that grow smaller."""
        shards = []
        while low < high:
            cost = self.costs[high] - self.costs[low]
            worth = PREFIXES * self.rows.common(low, high) / cost
            count = max(LEAST, self.share(low, high, min(1.0, max(PORTION, worth))))
            if high - low - count < LEAST:
                count = high - low
            stop = self.cut(low, high, min(count, MOST))
            indices = tuple(self.rows.row[low:stop].tolist())
            shards.append(Shard(indices, int(self.costs[stop] - self.costs[low])))
            low = stop
        return shards
