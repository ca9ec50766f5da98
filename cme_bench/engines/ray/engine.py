"""The engine of a run: it deals shards to workers and passes on their responses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from cme_bench.engines.base import Engine, EngineStats, Response, UnansweredError
from cme_bench.engines.inbox import Inbox
from cme_bench.engines.ray.cluster import alive_machines, plan_workers
from cme_bench.engines.ray.dealing import Dealing
from cme_bench.engines.ray.pool import Opening, Pool, Slot, WorkerDiedError
from cme_bench.engines.ray.worker import Answers
from cme_bench.util.errors import CmeError, UsageError

WAIT_SECONDS = 1.0
NOTE_SECONDS = 60.0
NO_ROOM_SECONDS = 120.0
"""A run waits so long for nodes to come back when none could hold a worker."""


class RayEngine(Engine):
    """Answer with the workers of ``pool``, told to open ``opening``; they are started when first needed.

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
        for slot in pool.slots:
            slot.failures = 0

    def serve(self, inbox: Inbox) -> Iterator[tuple[int, Response]]:
        """As ``Engine.serve``: a batch is dealt at once, the next one when a worker has too little to do.

        Raises what a worker's engine raises, and UnansweredError at the end.
        """
        dealing = Dealing(self._pool, self._opening, inbox, self._note)
        watch = _Watch(self._pool, self._note)
        spoke: Sequence[Slot] = self._pool.slots
        try:
            while dealing.refill() and not self._stopping():
                dealing.supply(spoke)
                spoke = self._pool.wait(WAIT_SECONDS)
                watch.check(spoke)
                for slot in spoke:
                    yield from self._poll(slot, dealing)
        finally:
            for slot, last in self._pool.finish():
                self._count(slot, last)
        if dealing.lost and not dealing.unanswered:
            raise UnansweredError(dealing.lost)

    def _poll(self, slot: Slot, dealing: Dealing) -> Iterator[tuple[int, Response]]:
        """Yield the responses that a worker has ready. It may instead say that it is open, or be dead."""
        try:
            if slot.reply is not None:
                self._describe(self._pool.opened(slot).description)
                return
            answers = self._pool.receive(slot)
        except WorkerDiedError as error:
            dealing.mark_dead(slot, str(error))
            return
        if answers is None:
            missing = len(slot.in_flight.unanswered)
            raise CmeError(f"a worker ({slot.where}) left {missing} requests unanswered")
        self._count(slot, answers)
        self._describe(answers.description)
        for number, response in answers.responses:
            dealing.settle(slot, number)
            yield number, response

    def _count(self, slot: Slot, answers: Answers) -> None:
        self._by_worker[slot.serial] = answers.stats
        self.stats = EngineStats.total(self._by_worker.values())

    def _describe(self, description: dict[str, str]) -> None:
        """Take over what a worker says of its engine; warn once it is known to round logits."""
        logits = description.get("logits")
        if logits in {"bfloat16", "float16"} and logits != self._description.get("logits"):
            self._note(
                f"the workers round logits to {logits}: choices that are nearly as likely as each other may "
                "tie, and the first wins. --dtype float32 does not round"
            )
        self._description = description

    def describe(self) -> dict[str, str]:
        """Return what the worker that spoke last says of its engine, and how many workers there are."""
        import ray

        plan = self._pool.plan
        each = f"{plan.gpus} GPUs" if plan.gpus else f"{plan.cpus} cores"
        return self._description | {"ray": ray.__version__, "workers": f"{plan.workers}, {each} each"}


class _Watch:
    """Tell the user now and then that a run waits for workers; give up where none can be had."""

    def __init__(self, pool: Pool, note: Callable[[str], None]) -> None:
        self._pool = pool
        self._note = note
        self._since = self._told = time.monotonic()

    def check(self, spoke: Sequence[Slot]) -> None:
        """Note the time. ``spoke``: the slots that had something to say just now."""
        now = time.monotonic()
        if spoke or any(slot.ready for slot in self._pool.slots):
            self._since = self._told = now
        elif now - self._told > NOTE_SECONDS:
            self._told = now
            self._note("waiting for a worker: loading the model, or no node has room")
        if now - self._since > NO_ROOM_SECONDS:
            machines = alive_machines()
            try:
                plan_workers(machines, 1, self._pool.plan.gpus)
            except UsageError as error:
                raise CmeError(f"no worker for {now - self._since:.0f} s: {error}") from error
