"""What is left to do, what a worker has in hand, and which questions are suspected of killing workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.ray.shards import Shard, plan_shards

AHEAD = 0.5
"""A worker gets its next shard when so much of the last is unanswered: it is never without work, and what it
has not got yet an idle worker may take. (Tokens foretell only roughly how long a worker takes.)"""
PARTS = 8
"""What a dead worker had in hand is divided into so many: a level of the search costs one more worker."""
DEATHS_ALONE = 2
"""So many workers may die with a question that stands alone; one may die of something else."""


@dataclass(slots=True)
class Hand:
    """What a worker has been given. ``last``: the shard that came last; ``unanswered``: in order of time."""

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
        return not self.last.suspected and len(self.unanswered) <= AHEAD * len(self.last)


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

    def take(self, worker: int, hand: Hand) -> Shard | None:
        """The next shard of a worker: of its own, else, if its hand is empty, the next one of whoever has
        most left, about half of that. Who still computes does not take what is another's: that one would
        have nothing to do. Nor does it take suspects: they stand alone."""
        if own := self._queues[worker]:
            return None if hand and own[0].suspected else own.popleft()
        if hand:
            return None
        busiest = max(self._queues, key=lambda queue: sum(shard.cost for shard in queue))
        return busiest.popleft() if busiest else None

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
