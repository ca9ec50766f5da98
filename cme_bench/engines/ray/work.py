"""What is left to do, and which questions are suspected of killing workers."""

from __future__ import annotations

from collections.abc import Sequence

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.ray.shards import Shard, plan_shards

PARTS = 8
"""A shard whose worker died is divided into so many: a level of the search costs one more worker."""
DEATHS_ALONE = 2
"""So many workers may die with a question that stands alone; one may die of something else."""


class Work:
    """Shards of ``requests`` for so many workers. ``lost``: by request, what its last worker died of.

    A shard that is taken is out of these books until its worker has answered it, or it is given back.
    """

    def __init__(self, requests: Sequence[LoglikelihoodRequest | GenerateRequest], workers: int) -> None:
        self._queues = plan_shards(requests, workers)
        self.lost: dict[int, str] = {}

    def __bool__(self) -> bool:
        return any(self._queues)

    def has_own(self, worker: int) -> bool:
        """Whether shards were meant for this worker and are still there."""
        return bool(self._queues[worker])

    def take(self, worker: int, *, idle: bool) -> Shard | None:
        """The next shard of a worker: of its own, else, if it is ``idle``, the next one of whoever has most
        left, about half of that. Who still computes does not take what is another's: that one would have
        nothing to do."""
        if self._queues[worker]:
            return self._queues[worker].popleft()
        if not idle:
            return None
        busiest = max(self._queues, key=lambda queue: sum(shard.cost for shard in queue))
        return busiest.popleft() if busiest else None

    def give_back(self, worker: int, shard: Shard, unanswered: Sequence[int]) -> None:
        """The worker is gone, but was busy with something else."""
        if unanswered:
            self._queues[worker].appendleft(_part(shard, unanswered))

    def suspect(self, worker: int, shard: Shard, unanswered: Sequence[int], reason: str) -> None:
        """The worker died over ``shard``, of which ``unanswered`` are left: a smaller crowd each time, until
        a question stands alone. It is then tried by another worker, where there is one, before it is lost."""
        if not unanswered:
            return
        if len(unanswered) > 1:
            size = -(-len(unanswered) // PARTS)
            for start in reversed(range(0, len(unanswered), size)):
                self._queues[worker].appendleft(_part(shard, unanswered[start : start + size]))
            return
        deaths = shard.deaths + 1 if len(shard) == 1 else 1
        if deaths >= DEATHS_ALONE:
            self.lost[unanswered[0]] = reason
        else:
            next_worker = (worker + 1) % len(self._queues)
            self._queues[next_worker].appendleft(Shard(tuple(unanswered), shard.cost, deaths))


def _part(shard: Shard, requests: Sequence[int]) -> Shard:
    deaths = shard.deaths if len(requests) == len(shard) else 0
    return Shard(tuple(requests), max(1, shard.cost * len(requests) // len(shard)), deaths)
