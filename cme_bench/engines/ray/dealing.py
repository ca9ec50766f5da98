"""The requests of one call of ``serve``: taken from the inbox, dealt to workers, settled or lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cme_bench.engines.base import Request
from cme_bench.engines.inbox import Inbox
from cme_bench.engines.ray.pool import STARTS, Opening, Pool, Slot
from cme_bench.engines.ray.work import Work
from cme_bench.util.errors import CmeError

MOST_LOST = 8
"""With more questions than this that no worker survives, the fault is not theirs."""


class Dealing:
    """Have the workers of ``pool`` answer what comes into ``inbox``, with ``opening``.

    ``unanswered``: by number, what has been taken and has no response yet.
    """

    def __init__(self, pool: Pool, opening: Opening, inbox: Inbox, note: Callable[[str], None]) -> None:
        self.unanswered: dict[int, Request] = {}
        self._work = Work(len(pool.slots))
        self._pool = pool
        self._opening = opening
        self._inbox = inbox
        self._note = note

    @property
    def lost(self) -> Mapping[int, str]:
        """Return, by number of a request, what the last worker that had it died of."""
        return self._work.lost

    def refill(self) -> bool:
        """Take the next batch if a worker has too little to do; tell whether anything is unanswered."""
        if not self._work and any(slot.in_flight.below_target() for slot in self._pool.slots):
            batch = dict(self._inbox.take(wait=not self.unanswered))
            self.unanswered |= batch
            self._work.add(batch)
        return bool(self.unanswered)

    def supply(self, spoke: Sequence[Slot]) -> None:
        """Give what they lack to the slots that spoke and to those without work."""
        for slot in self._pool.slots:
            if slot in spoke or not slot.in_flight:
                self._supply(slot)

    def _supply(self, slot: Slot) -> None:
        """Give a slot what it lacks: a worker, the right opening, shards."""
        if slot.reply is not None or (not slot.in_flight and not self._work):
            return
        if slot.opening != self._opening:
            if self._wants_worker(slot) and slot.failures < STARTS:
                self._pool.open(slot, self._opening)
            return
        in_flight = [other.in_flight for other in self._pool.slots]
        while slot.in_flight.wants_more() and (shard := self._work.take(slot.index, in_flight)):
            self._pool.send(slot, shard, self.unanswered)

    def _wants_worker(self, slot: Slot) -> bool:
        """Tell whether a slot has a worker, or work that waits for it, or no slot has a worker."""
        if slot.actor or self._work.waits_for(slot.index):
            return True
        return not any(other.actor for other in self._pool.slots)

    def settle(self, slot: Slot, number: int) -> None:
        """Take a request off the books: the worker of a slot has answered it."""
        del slot.in_flight.unanswered[number]
        del self.unanswered[number]

    def mark_dead(self, slot: Slot, reason: str) -> None:
        """Have others do what a worker had that is gone, and leave its slot to a new one.

        Raises CmeError if the workers' deaths are no fault of single requests.
        """
        if slot.reply is not None:
            slot.failures += 1
            self._note(f"worker {slot.index + 1} did not start: {reason}")
        elif slot.in_flight:
            self._note(f"worker {slot.index + 1} ({slot.where}) died: {reason}")
            self._work.bisect(slot.index, slot.in_flight, reason)
        self._pool.end(slot)
        for number in self.lost.keys() & self.unanswered.keys():
            del self.unanswered[number]
        if len(self.lost) > MOST_LOST:
            raise CmeError(f"{len(self.lost)} questions in a row killed their workers; the last: {reason}")
        if all(other.failures >= STARTS for other in self._pool.slots):
            raise CmeError(f"no worker could be started: {reason}")
