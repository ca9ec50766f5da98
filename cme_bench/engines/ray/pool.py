"""Workers of a run: started where the cluster has room, replaced when they die, ended with the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.ray.cluster import Crew
from cme_bench.engines.ray.shards import Shard
from cme_bench.engines.ray.worker import Answers, Opened, Source, Worker
from cme_bench.errors import CmeError, EngineDiedError, first_line

STARTS = 3
"""A place whose workers die so often before they are ready, one after the other, stays empty."""
IN_FLIGHT = 2
"""Shards that a worker has: one that it computes, one that it need not wait for."""
NEARLY = 0.25
"""It gets the second when so much of the first is unanswered. Until then an idle worker may take it: tokens
foretell only roughly how long a worker takes."""
CLOSE_SECONDS = 10.0
"""For workers to end by themselves; then they are ended."""

Opening: TypeAlias = tuple[Any, ...]
Requests: TypeAlias = Sequence[LoglikelihoodRequest | GenerateRequest]


@dataclass(slots=True)
class Flight:
    """A shard that a worker has. ``unanswered``: requests, in the order of the shard."""

    shard: Shard
    stream: Any
    unanswered: dict[int, None]


def wants_more(flights: Sequence[Flight]) -> bool:
    """Whether a worker with these should be handed another shard."""
    if not flights:
        return True
    current = flights[0]
    return len(flights) < IN_FLIGHT and len(current.unanswered) <= NEARLY * len(current.shard)


@dataclass(slots=True)
class Place:
    """Where a worker is, or was, or will be. ``serial`` names the worker; ``failures``: workers in a row that
    died before they were ready; ``opening``: what the worker was last told to answer with; ``ready``: the
    reply to that is there."""

    index: int
    actor: Any = None
    serial: int = 0
    failures: int = 0
    opening: Opening | None = None
    reply: Any = None
    ready: bool = False
    where: str = ""
    flights: deque[Flight] = field(default_factory=deque)


class WorkerDiedError(Exception):
    """A worker is gone, or must go: its process or node died, or its engine is broken. The text says why."""


class Pool:
    """Places for the workers of ``crew``. ``make`` builds what opens engines, in the worker's process, whose
    environment gets ``environment``."""

    def __init__(self, crew: Crew, make: Callable[[], Source], environment: Mapping[str, str]) -> None:
        self.crew = crew
        self.places = [Place(index) for index in range(crew.workers)]
        self._make = make
        self._environment = dict(environment)
        self._started = 0

    def open(self, place: Place, opening: Opening) -> None:
        """Tell the worker of a place to answer with ``opening``; it is started if there is none."""
        import ray

        if place.actor is None:
            self._started += 1
            place.serial = self._started
            options = {
                "num_cpus": self.crew.cpus,
                "num_gpus": self.crew.gpus,
                "max_restarts": 0,  # a new worker must be told what to open: this module does it
                "max_task_retries": 0,
                "scheduling_strategy": "SPREAD",
            }
            place.actor = ray.remote(Worker).options(**options).remote(self._environment)
        place.opening, place.ready = opening, False
        place.reply = place.actor.open.remote(self._make, opening)

    def opened(self, place: Place) -> Opened:
        """The reply of a worker that was told to open. Raises WorkerDiedError, or the worker's CmeError."""
        reply: Opened = _fetch(place.reply)
        place.reply, place.ready, place.failures = None, True, 0
        place.where = f"{reply.host}, process {reply.pid}"
        return reply

    def send(self, place: Place, shard: Shard, requests: Requests) -> None:
        """Hand a shard to the worker of a place."""
        asked = [requests[i] for i in shard.requests]
        stream = place.actor.answer.options(num_returns="streaming").remote(asked)
        place.flights.append(Flight(shard, stream, dict.fromkeys(shard.requests)))

    def receive(self, place: Place) -> Answers | None:
        """What the worker of a place sends next of its first shard; None at its end. Raises as ``opened``."""
        try:
            reference = next(place.flights[0].stream)
        except StopIteration:
            return None
        answers: Answers = _fetch(reference)
        return answers

    def wait(self, seconds: float) -> list[Place]:
        """Places that have something to say, within ``seconds``."""
        import ray

        speaking = [(place.reply or place.flights[0].stream, place) for place in self.places if _busy(place)]
        if not speaking:
            return []
        ready, _ = ray.wait([one for one, _ in speaking], num_returns=1, timeout=seconds, fetch_local=False)
        said = {id(one) for one in ready}
        return [place for one, place in speaking if id(one) in said]

    def end(self, place: Place) -> None:
        """End the worker of a place, whatever it does."""
        import ray

        if place.actor is not None:
            ray.kill(place.actor)
        place.actor = place.reply = place.opening = None
        place.ready = False
        place.flights.clear()

    def end_busy(self) -> None:
        """End the workers that still compute."""
        for place in self.places:
            if place.flights:
                self.end(place)

    def close(self) -> None:
        """End all workers."""
        import ray

        if not ray.is_initialized():
            return
        replies = [place.actor.close.remote() for place in self.places if place.ready and not place.flights]
        if replies:
            ray.wait(replies, num_returns=len(replies), timeout=CLOSE_SECONDS)
        for place in self.places:
            self.end(place)


def _busy(place: Place) -> bool:
    return place.reply is not None or bool(place.flights)


def _fetch(reference: Any) -> Any:
    """What a worker returned. An error that a user can act on is raised as it was; any other means that the
    worker's process, or its node, or its engine is no longer to be trusted."""
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
    """ray describes an actor line by line; the last says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("class_name", "actor_id", "pid", "name", "ip"))]
    return told[-1] if told else type(error).__name__
