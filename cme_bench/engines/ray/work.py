"""What is left to do, what a worker has in hand, and which questions are suspected of killing workers."""

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
"""What a dead worker had in hand is divided into so many: a level of the search costs one more worker."""
DEATHS_ALONE = 2
"""So many workers may die with a question that stands alone; one may die of something else."""


@dataclass(slots=True)
class Hand:
    """What a worker has been given. ``target_in_flight``: of its engine; ``last``: the shard that came last;
    ``unanswered``: in order of time."""

    target_in_flight: int = 1
    last: Shard | None = None
    unanswered: dict[int, None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.unanswered)

    def give(self, shard: Shard) -> None:
        self.last = shard
        self.unanswered |= dict.fromkeys(shard.requests)

    def wants_more(self) -> bool:
        """Whether the worker should be given another shard. Suspects are not joined by others."""
        if not self or self.last is None:
            return True
        return not self.last.suspected and (self.hungry() or len(self.unanswered) <= AHEAD * len(self.last))

    def hungry(self) -> bool:
        """Whether the engine would be faster with more."""
        return len(self.unanswered) < self.target_in_flight


class Work:
    """Shards for so many workers. ``lost``: by request, what its last worker died of.

    A shard that is taken is out of these books until its worker has answered it, or has died of it.
    """

    def __init__(self, workers: int) -> None:
        self._queues: list[deque[Shard]] = [deque() for _ in range(workers)]
        self.lost: dict[int, str] = {}

    def add(self, requests: Mapping[int, Request]) -> None:
        """More to do, by index: a part of about the same cost for each worker."""
        indices = list(requests)
        for worker, shards in enumerate(plan_shards(list(requests.values()), len(self._queues))):
            for shard in shards:
                named = replace(shard, requests=tuple(indices[i] for i in shard.requests))
                self._queues[worker].append(named)

    def __bool__(self) -> bool:
        return any(self._queues)

    def has_own(self, worker: int) -> bool:
        """Whether shards were meant for this worker and are still there."""
        return bool(self._queues[worker])

    def take(self, worker: int, hands: Sequence[Hand]) -> Shard | None:
        """Return the next shard of a worker: of its own, or of another if it has none and is hungry.

        Suspects stand alone: they are taken with empty hands only. ``hands``: of all workers.
        """
        queue = self._queues[worker]
        if not queue and hands[worker].hungry():
            queue = self._to_steal_from(worker, hands)
        if not queue or (hands[worker] and queue[0].suspected):
            return None
        return queue.popleft()

    def _to_steal_from(self, worker: int, hands: Sequence[Hand]) -> deque[Shard]:
        """Return the queue with most waiting; an empty one if the worker should not steal from it.

        A worker with empty hands takes the next shard. One that still computes takes it only if the other
        then keeps at least as many requests as the worker has.
        """
        busiest = max(range(len(hands)), key=lambda i: sum(shard.cost for shard in self._queues[i]))
        queue, hand = self._queues[busiest], hands[worker]
        if not queue or not hand:
            return queue
        kept = len(hands[busiest].unanswered) + sum(map(len, queue)) - len(queue[0])
        return queue if len(hand.unanswered) + len(queue[0]) <= kept else deque()

    def suspect(self, worker: int, hand: Hand, reason: str) -> None:
        """The worker died over what it had in hand: it comes back in parts, a smaller crowd each time, until
        a question stands alone. That is then tried by another worker, where there is one, before it is lost.
        """
        unanswered, last = tuple(hand.unanswered), hand.last
        if not unanswered or last is None:
            return
        if len(unanswered) > 1:
            size = -(-len(unanswered) // PARTS)
            for start in reversed(range(0, len(unanswered), size)):
                self._queues[worker].appendleft(_part(last, unanswered[start : start + size]))
            return
        deaths = last.deaths + 1 if last.requests == unanswered else 1
        if deaths >= DEATHS_ALONE:
            self.lost[unanswered[0]] = reason
        else:
            next_worker = (worker + 1) % len(self._queues)
            self._queues[next_worker].appendleft(replace(_part(last, unanswered), deaths=deaths))


def _part(last: Shard, requests: tuple[int, ...]) -> Shard:
    """Suspects of a hand, at about the cost of those given last."""
    return Shard(requests, max(1, last.cost * len(requests) // len(last)), suspected=True)
