"""The engine that a run sees: it deals shards to workers and passes on what they answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cme_bench.engines.base import (
    Engine,
    EngineStats,
    Feed,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    UnansweredError,
    gathered,
)
from cme_bench.engines.checks import check_generate, check_loglikelihood
from cme_bench.engines.ray.cluster import alive_nodes, plan_crew
from cme_bench.engines.ray.pool import STARTS, Opening, Place, Pool, Requests, WorkerDiedError
from cme_bench.engines.ray.work import Work
from cme_bench.engines.ray.worker import Answers
from cme_bench.errors import CmeError, UsageError

MOST_LOST = 8
"""With more questions than this that no worker survives, the fault is not theirs."""
WAIT_SECONDS = 1.0
NOTE_SECONDS = 60.0
NO_ROOM_SECONDS = 120.0
"""How long a run waits for nodes to come back when none could hold a worker."""


class RayEngine(Engine):
    """Answers with the workers of ``pool``, told to open ``opening``, which are started when first needed.

    The number of workers changes no answer by more than their engine's own tolerance. ``note`` is told when
    workers die, cannot be had, or round logits. Once ``stopping`` says so, answers end, however long workers
    still take.
    """

    def __init__(
        self,
        pool: Pool,
        opening: Opening,
        *,
        max_length: int,
        kind: str,
        note: Callable[[str], None],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.max_length = max_length
        self.stats = EngineStats()
        self._pool = pool
        self._opening = opening
        self._note = note
        self._stopping = stopping
        self._description = {"engine": kind}
        self._by_worker: dict[int, EngineStats] = {}
        for place in pool.places:
            place.failures = 0

    def loglikelihood(
        self, requests: Sequence[LoglikelihoodRequest]
    ) -> Iterator[tuple[int, LoglikelihoodResponse]]:
        """Responses as they arrive. Raises what a worker's engine raises, and UnansweredError."""
        check_loglikelihood(requests, self.max_length)
        return self.serve(enumerate(requests))

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]:
        """As ``loglikelihood``."""
        check_generate(requests, self.max_length)
        return self.serve(enumerate(requests))

    def serve(self, feed: Feed) -> Iterator[tuple[int, Any]]:
        """As ``Engine.serve``: what is there is dealt at once, and more is taken when a worker has too little
        to do. Raises what a worker's engine raises, and UnansweredError at the end."""
        work = Work(len(self._pool.places))
        more = gathered(feed)
        requests: dict[int, Any] = {}
        watch = _Watch(self._pool, self._note)
        spoke: Sequence[Place] = self._pool.places
        try:
            while True:
                if not work and any(place.hand.hungry() for place in self._pool.places):
                    fresh = dict(next(more, ()))
                    requests |= fresh
                    work.add(fresh)
                if not requests:
                    break
                if self._stopping():
                    return
                for place in self._pool.places:
                    if place in spoke or not place.hand:
                        self._supply(place, work, requests)
                spoke = self._pool.wait(WAIT_SECONDS)
                watch.check(spoke)
                for place in spoke:
                    for index, response in self._hear(place, work):
                        del requests[index]
                        yield index, response
                for index in work.lost.keys() & requests.keys():
                    del requests[index]
        finally:
            for place, last in self._pool.finish():
                self._count(place, last)
        if work.lost:
            raise UnansweredError(work.lost)

    def _supply(self, place: Place, work: Work, requests: Requests) -> None:
        """Give a place what it lacks: a worker, the right opening, shards."""
        if place.reply is not None or (not place.hand and not work):
            return
        if place.opening != self._opening:
            wanted = place.actor or work.has_own(place.index) or not any(p.actor for p in self._pool.places)
            if wanted and place.failures < STARTS:
                self._pool.open(place, self._opening)
            return
        hands = [other.hand for other in self._pool.places]
        while place.hand.wants_more() and (shard := work.take(place.index, hands)):
            self._pool.send(place, shard, requests)

    def _hear(self, place: Place, work: Work) -> Iterator[tuple[int, Any]]:
        """What a worker has to say: that it is ready, answers, or its end."""
        try:
            if place.reply is not None:
                self._describe(self._pool.opened(place).description)
                return
            answers = self._pool.receive(place)
        except WorkerDiedError as error:
            self._bury(place, work, str(error))
            return
        if answers is None:
            raise CmeError(f"a worker ({place.where}) left {len(place.hand.unanswered)} requests unanswered")
        self._count(place, answers)
        self._describe(answers.description)
        for index, response in answers.responses:
            del place.hand.unanswered[index]
            yield index, response

    def _count(self, place: Place, answers: Answers) -> None:
        self._by_worker[place.serial] = answers.stats
        self.stats = EngineStats.total(self._by_worker.values())

    def _describe(self, description: dict[str, str]) -> None:
        """Take over what a worker says of its engine. Whether it rounds logits is known once it has some."""
        logits = description.get("logits")
        if logits in {"bfloat16", "float16"} and logits != self._description.get("logits"):
            self._note(
                f"the workers round logits to {logits}: choices that are nearly as likely as each other may "
                "tie, and the first wins. --dtype float32 does not round"
            )
        self._description = description

    def _bury(self, place: Place, work: Work, reason: str) -> None:
        """The worker of a place is gone: what it had is done by others, and a new one takes its place."""
        if place.reply is not None:
            place.failures += 1
            self._note(f"worker {place.index + 1} did not start: {reason}")
        elif place.hand:
            self._note(f"worker {place.index + 1} ({place.where}) died: {reason}")
            work.suspect(place.index, place.hand, reason)
        self._pool.end(place)
        if len(work.lost) > MOST_LOST:
            raise CmeError(f"{len(work.lost)} questions in a row killed their workers; the last: {reason}")
        if all(other.failures >= STARTS for other in self._pool.places):
            raise CmeError(f"no worker could be started: {reason}")

    def describe(self) -> dict[str, str]:
        """What the first worker says of its engine, and how many there are."""
        import ray

        crew = self._pool.crew
        each = f"{crew.gpus} GPUs" if crew.gpus else f"{crew.cpus} cores"
        return self._description | {"ray": ray.__version__, "workers": f"{crew.workers}, {each} each"}


class _Watch:
    """Says now and then that a run waits for workers, and gives up where none could ever be had."""

    def __init__(self, pool: Pool, note: Callable[[str], None]) -> None:
        self._pool = pool
        self._note = note
        self._since = self._told = time.monotonic()

    def check(self, spoke: Sequence[Place]) -> None:
        """``spoke``: places that had something to say just now."""
        now = time.monotonic()
        if spoke or any(place.ready for place in self._pool.places):
            self._since = self._told = now
        elif now - self._told > NOTE_SECONDS:
            self._told = now
            self._note("waiting for a worker: loading the model, or no node has room")
        if now - self._since > NO_ROOM_SECONDS:
            nodes = alive_nodes()
            try:
                plan_crew(nodes, 1, self._pool.crew.gpus)
            except UsageError as error:
                raise CmeError(f"no worker for {now - self._since:.0f} s: {error}") from error
