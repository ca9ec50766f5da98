"""The requests of one call of ``serve``: taken from the inbox, dealt to workers, settled or lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cme_bench.engines.base import Request
from cme_bench.engines.inbox import Inbox
from cme_bench.engines.ray.pool import STARTS, Opening, Place, Pool
from cme_bench.engines.ray.work import Work
from cme_bench.errors import CmeError

MOST_LOST = 8
"""With more questions than this that no worker survives, the fault is not theirs."""


class Dealing:
    """What is to be done for ``inbox`` by the workers of ``pool``, which answer with ``opening``.

    ``unanswered``: by number, what has been taken and has no response yet.
    """

    def __init__(self, pool: Pool, opening: Opening, inbox: Inbox, note: Callable[[str], None]) -> None:
        self.unanswered: dict[int, Request] = {}
        self._work = Work(len(pool.places))
        self._pool = pool
        self._opening = opening
        self._inbox = inbox
        self._note = note

    @property
    def lost(self) -> Mapping[int, str]:
        """By number, what the last worker that had the request died of."""
        return self._work.lost

    def refill(self) -> bool:
        """Take the next batch if a worker has too little to do; tell whether anything is unanswered."""
        if not self._work and any(place.hand.hungry() for place in self._pool.places):
            batch = dict(self._inbox.take(wait=not self.unanswered))
            self.unanswered |= batch
            self._work.add(batch)
        return bool(self.unanswered)

    def supply(self, spoke: Sequence[Place]) -> None:
        """Give what they lack to the places that spoke and to those without work."""
        for place in self._pool.places:
            if place in spoke or not place.hand:
                self._supply(place)

    def _supply(self, place: Place) -> None:
        """Give a place what it lacks: a worker, the right opening, shards."""
        if place.reply is not None or (not place.hand and not self._work):
            return
        if place.opening != self._opening:
            if self._wants_worker(place) and place.failures < STARTS:
                self._pool.open(place, self._opening)
            return
        hands = [other.hand for other in self._pool.places]
        while place.hand.wants_more() and (shard := self._work.take(place.index, hands)):
            self._pool.send(place, shard, self.unanswered)

    def _wants_worker(self, place: Place) -> bool:
        """Whether a place has a worker, or work meant for it, or no place has a worker."""
        if place.actor or self._work.has_own(place.index):
            return True
        return not any(other.actor for other in self._pool.places)

    def settle(self, place: Place, number: int) -> None:
        """Take a request off the books: the worker of a place has answered it."""
        del place.hand.unanswered[number]
        del self.unanswered[number]

    def mark_dead(self, place: Place, reason: str) -> None:
        """Have others do what a worker had that is gone, and leave its place to a new one.

        Raises CmeError if the workers' deaths are no fault of single requests.
        """
        if place.reply is not None:
            place.failures += 1
            self._note(f"worker {place.index + 1} did not start: {reason}")
        elif place.hand:
            self._note(f"worker {place.index + 1} ({place.where}) died: {reason}")
            self._work.suspect(place.index, place.hand, reason)
        self._pool.end(place)
        for number in self.lost.keys() & self.unanswered.keys():
            del self.unanswered[number]
        if len(self.lost) > MOST_LOST:
            raise CmeError(f"{len(self.lost)} questions in a row killed their workers; the last: {reason}")
        if all(other.failures >= STARTS for other in self._pool.places):
            raise CmeError(f"no worker could be started: {reason}")
