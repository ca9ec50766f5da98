"""The shards that are left to do, and the search for a question that kills workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cme_bench.engines.base import Request
from cme_bench.engines.ray.shards import Shard, plan_shards

AHEAD = 0.25
"""A worker gets its next shard when so much of the last is unanswered, or less than its engine's target.

It is never without work, and others may take what it has not got yet: tokens foretell only roughly how long a
worker takes."""
PARTS = 8
"""A dead worker's requests are divided into so many parts: a level of the search costs one more worker."""
DEATHS_ALONE = 2
"""So many workers may die with a question that stands alone; one may die of something else."""


@dataclass(slots=True)
class InFlight:
    """Hold what a worker has been given and has not answered.

    ``target_in_flight``: of its engine; ``last``: the shard that came last; ``unanswered``: in order of time.
    """

    target_in_flight: int = 1
    last: Shard | None = None
    unanswered: dict[int, None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.unanswered)

    def give(self, shard: Shard) -> None:
        """Add a shard."""
        self.last = shard
        self.unanswered |= dict.fromkeys(shard.requests)

    def wants_more(self) -> bool:
        """Tell whether the worker should be given another shard; none joins one that is suspected."""
        if not self or self.last is None:
            return True
        if self.last.suspected:
            return False
        return self.below_target() or len(self.unanswered) <= AHEAD * len(self.last)

    def below_target(self) -> bool:
        """Tell whether the engine would be faster with more."""
        return len(self.unanswered) < self.target_in_flight


class Work:
    """Queue shards for so many workers.

    ``lost``: by request, what its last worker died of. A shard that is taken is out of these books until its
    worker has answered it, or has died of it.
    """

    def __init__(self, workers: int) -> None:
        self._queues: list[deque[Shard]] = [deque() for _ in range(workers)]
        self.lost: dict[int, str] = {}

    def add(self, requests: Mapping[int, Request]) -> None:
        """Queue requests, by number: a part of about the same cost for each worker."""
        numbers = list(requests)
        for worker, shards in enumerate(plan_shards(list(requests.values()), len(self._queues))):
            for shard in shards:
                numbered = replace(shard, requests=tuple(numbers[i] for i in shard.requests))
                self._queues[worker].append(numbered)

    def __bool__(self) -> bool:
        return any(self._queues)

    def waits_for(self, worker: int) -> bool:
        """Tell whether shards are queued for this worker."""
        return bool(self._queues[worker])

    def take(self, worker: int, in_flight: Sequence[InFlight]) -> Shard | None:
        """Take the next shard for a worker: from its queue or, if that is empty, from another's.

        Only an engine below its target takes from another. A suspected shard stands alone: only a worker with
        nothing in flight takes it. ``in_flight``: of all workers.
        """
        queue = self._queues[worker]
        if not queue and in_flight[worker].below_target():
            queue = self._to_steal_from(worker, in_flight)
        if not queue or (in_flight[worker] and queue[0].suspected):
            return None
        return queue.popleft()

    def _to_steal_from(self, worker: int, in_flight: Sequence[InFlight]) -> deque[Shard]:
        """Return the queue with most cost; an empty one if the worker should not take from it.

        A worker with nothing in flight takes at once. One that computes takes a shard only if the other then
        keeps at least as many requests as it has itself.
        """
        busiest = max(range(len(in_flight)), key=lambda i: sum(shard.cost for shard in self._queues[i]))
        queue = self._queues[busiest]
        if not queue or not in_flight[worker]:
            return queue
        gets = len(in_flight[worker].unanswered) + len(queue[0])
        keeps = len(in_flight[busiest].unanswered) + sum(map(len, queue)) - len(queue[0])
        return queue if gets <= keeps else deque()

    def bisect(self, worker: int, died_with: InFlight, reason: str) -> None:
        """Queue what a worker died with in parts, so that deaths single out the deadly question.

        A question that stands alone is tried by another worker, where there is one, before it is lost.
        """
        unanswered, last = tuple(died_with.unanswered), died_with.last
        if not unanswered or last is None:
            return
        if len(unanswered) > 1:
            size = -(-len(unanswered) // PARTS)
            for start in reversed(range(0, len(unanswered), size)):
                self._queues[worker].appendleft(_suspected(last, unanswered[start : start + size]))
            return
        deaths = last.deaths + 1 if last.requests == unanswered else 1
        if deaths >= DEATHS_ALONE:
            self.lost[unanswered[0]] = reason
        else:
            next_worker = (worker + 1) % len(self._queues)
            self._queues[next_worker].appendleft(replace(_suspected(last, unanswered), deaths=deaths))


def _suspected(last: Shard, requests: tuple[int, ...]) -> Shard:
    """Return a shard of suspects, at about the cost of the shard that the worker got last."""
    return Shard(requests, max(1, last.cost * len(requests) // len(last)), suspected=True)
