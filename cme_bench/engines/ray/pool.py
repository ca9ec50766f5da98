"""Workers of a run: started where the cluster has room, replaced when they die, ended with the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cme_bench.engines.base import Request
from cme_bench.engines.ray.cluster import WorkerPlan
from cme_bench.engines.ray.shards import Shard
from cme_bench.engines.ray.work import InFlight
from cme_bench.engines.ray.worker import INBOX, Answers, Opened, Source, Worker
from cme_bench.util.errors import CmeError, EngineDiedError, first_line

STARTS = 3
"""A slot stays empty after so many workers in a row that died before they were ready."""
CLOSE_SECONDS = 10.0
"""So long workers may take to end by themselves; then they are ended."""

Opening: TypeAlias = tuple[Any, ...]
Requests: TypeAlias = Mapping[int, Request]
"""By number."""


@dataclass(slots=True, eq=False)
class Slot:
    """Hold one worker after another.

    ``serial`` names the worker; ``failures``: workers in a row that died before they were ready; ``opening``:
    what the worker was last told to answer with; ``reply``: to that, until it is there, then ``ready``;
    ``stream``: its answers to what it is given.
    """

    index: int
    actor: Any = None
    serial: int = 0
    failures: int = 0
    opening: Opening | None = None
    reply: Any = None
    ready: bool = False
    where: str = ""
    stream: Any = None
    in_flight: InFlight = field(default_factory=InFlight)


class WorkerDiedError(Exception):
    """A worker's process or machine died, or its engine is broken; the text says why."""


class Pool:
    """Run the workers of ``plan``, each in a slot.

    ``make`` builds what opens engines, in the worker's process, whose environment gets ``environment``.
    """

    def __init__(self, plan: WorkerPlan, make: Callable[[], Source], environment: Mapping[str, str]) -> None:
        self.plan = plan
        self.slots = [Slot(index) for index in range(plan.workers)]
        self._make = make
        self._environment = dict(environment)
        self._started = 0

    def open(self, slot: Slot, opening: Opening) -> None:
        """Tell the worker of a slot to answer with ``opening``; start one if there is none."""
        import ray

        if slot.actor is None:
            self._started += 1
            slot.serial = self._started
            options = {
                "num_cpus": self.plan.cpus,
                "num_gpus": self.plan.gpus,
                "max_restarts": 0,  # a new worker must be told what to open: this module does it
                "max_task_retries": 0,
                "scheduling_strategy": "SPREAD",
                "concurrency_groups": {INBOX: 1},  # the worker takes shards while it computes
            }
            slot.actor = ray.remote(**options)(Worker).remote(self._environment)
        slot.opening, slot.ready = opening, False
        slot.reply = slot.actor.open.remote(self._make, opening)

    def opened(self, slot: Slot) -> Opened:
        """Return the reply of a worker that was told to open.

        Raises WorkerDiedError, or the CmeError that the worker raised.
        """
        reply: Opened = _fetch(slot.reply)
        slot.reply, slot.ready, slot.failures = None, True, 0
        slot.in_flight.target_in_flight = reply.target_in_flight
        slot.where = f"{reply.host}, process {reply.pid}"
        return reply

    def send(self, slot: Slot, shard: Shard, requests: Requests) -> None:
        """Hand a shard to the worker of a slot."""
        if slot.stream is None:
            slot.stream = slot.actor.answer.options(num_returns="streaming").remote()
        _inbox(slot.actor.put).remote([(i, requests[i]) for i in shard.requests])
        slot.in_flight.give(shard)

    def receive(self, slot: Slot) -> Answers | None:
        """Return what the worker of a slot sends next; None at the end. Raises as ``opened``."""
        try:
            reference = next(slot.stream)
        except StopIteration:
            return None
        answers: Answers = _fetch(reference)
        return answers

    def wait(self, seconds: float) -> list[Slot]:
        """Return the slots whose worker has something to say, within ``seconds``."""
        import ray

        pending = [(slot.reply or slot.stream, slot) for slot in self.slots if _busy(slot)]
        if not pending:
            return []
        references = [reference for reference, _ in pending]
        ready, _ = ray.wait(references, num_returns=1, timeout=seconds, fetch_local=False)
        ready_ids = {id(reference) for reference in ready}
        return [slot for reference, slot in pending if id(reference) in ready_ids]

    def end(self, slot: Slot) -> None:
        """End the worker of a slot, whatever it does."""
        import ray

        if slot.actor is not None:
            ray.kill(slot.actor)
        slot.actor = slot.reply = slot.opening = slot.stream = None
        slot.ready = False
        slot.in_flight = InFlight()

    def finish(self) -> Iterator[tuple[Slot, Answers]]:
        """End the answers: yield what workers have left to say, and end those that still compute."""
        for slot in self.slots:
            if slot.in_flight:
                self.end(slot)
            elif slot.stream is not None:
                _inbox(slot.actor.put_no_more).remote()
        for slot in self.slots:
            try:
                while slot.stream is not None:
                    answers = self.receive(slot)
                    if answers is None:
                        slot.stream, slot.in_flight = None, InFlight(slot.in_flight.target_in_flight)
                    else:
                        yield slot, answers
            except WorkerDiedError:
                self.end(slot)

    def close(self) -> None:
        """End all workers."""
        import ray

        if not ray.is_initialized():
            return
        replies = [slot.actor.close.remote() for slot in self.slots if slot.ready and not slot.in_flight]
        if replies:
            ray.wait(replies, num_returns=len(replies), timeout=CLOSE_SECONDS)
        for slot in self.slots:
            self.end(slot)


def _busy(slot: Slot) -> bool:
    return slot.reply is not None or bool(slot.in_flight)


def _inbox(method: Any) -> Any:
    """Return the worker's ``method`` as one that ray calls while the worker computes."""
    return method.options(concurrency_group=INBOX)


def _fetch(reference: Any) -> Any:
    """Return what a worker returned.

    An error that a user can act on is raised as it was. Any other means that the worker's process, its
    machine or its engine is no longer to be trusted: WorkerDiedError.
    """
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, CmeError) and not isinstance(cause, EngineDiedError):
            raise cause from error
        raise WorkerDiedError(f"{type(cause).__name__}: {first_line(cause)}") from error
    except ray.exceptions.RayError as error:
        raise WorkerDiedError(_last_line(error)) from error


def _last_line(error: Exception) -> str:
    """Return what happened: ray describes an actor line by line, and says it last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    described = ("class_name", "actor_id", "pid", "name", "ip")
    reasons = [line for line in lines if not line.startswith(described)]
    return reasons[-1] if reasons else type(error).__name__
