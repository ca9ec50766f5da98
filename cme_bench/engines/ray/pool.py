"""Workers of a run: started where the cluster has room, replaced when they die, ended with the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cme_bench.engines.base import Request
from cme_bench.engines.ray.cluster import Crew
from cme_bench.engines.ray.shards import Shard
from cme_bench.engines.ray.work import Hand
from cme_bench.engines.ray.worker import INBOX, Answers, Opened, Source, Worker
from cme_bench.errors import CmeError, EngineDiedError, first_line

STARTS = 3
"""A place whose workers die so often before they are ready, one after the other, stays empty."""
CLOSE_SECONDS = 10.0
"""For workers to end by themselves; then they are ended."""

Opening: TypeAlias = tuple[Any, ...]
Requests: TypeAlias = Mapping[int, Request]
"""By number."""


@dataclass(slots=True, eq=False)
class Place:
    """Where a worker is, or was, or will be. ``serial`` names the worker; ``failures``: workers in a row that
    died before they were ready; ``opening``: what the worker was last told to answer with; ``ready``: the
    reply to that is there; ``stream``: its answers to what it is given."""

    index: int
    actor: Any = None
    serial: int = 0
    failures: int = 0
    opening: Opening | None = None
    reply: Any = None
    ready: bool = False
    where: str = ""
    stream: Any = None
    hand: Hand = field(default_factory=Hand)


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
                "concurrency_groups": {INBOX: 1},  # the worker takes shards while it computes
            }
            place.actor = ray.remote(**options)(Worker).remote(self._environment)
        place.opening, place.ready = opening, False
        place.reply = place.actor.open.remote(self._make, opening)

    def opened(self, place: Place) -> Opened:
        """The reply of a worker that was told to open. Raises WorkerDiedError, or the worker's CmeError."""
        reply: Opened = _fetch(place.reply)
        place.reply, place.ready, place.failures = None, True, 0
        place.hand.target_in_flight = reply.target_in_flight
        place.where = f"{reply.host}, process {reply.pid}"
        return reply

    def send(self, place: Place, shard: Shard, requests: Requests) -> None:
        """Hand a shard to the worker of a place."""
        if place.stream is None:
            place.stream = place.actor.answer.options(num_returns="streaming").remote()
        _inbox(place.actor.put).remote([(i, requests[i]) for i in shard.requests])
        place.hand.give(shard)

    def receive(self, place: Place) -> Answers | None:
        """What the worker of a place sends next; None at the end. Raises as ``opened``."""
        try:
            reference = next(place.stream)
        except StopIteration:
            return None
        answers: Answers = _fetch(reference)
        return answers

    def wait(self, seconds: float) -> list[Place]:
        """Places that have something to say, within ``seconds``."""
        import ray

        speaking = [(place.reply or place.stream, place) for place in self.places if _busy(place)]
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
        place.actor = place.reply = place.opening = place.stream = None
        place.ready = False
        place.hand = Hand()

    def finish(self) -> Iterator[tuple[Place, Answers]]:
        """No more is asked: what workers have left to say. Those that still compute are ended."""
        for place in self.places:
            if place.hand:
                self.end(place)
            elif place.stream is not None:
                _inbox(place.actor.put_no_more).remote()
        for place in self.places:
            try:
                while place.stream is not None:
                    answers = self.receive(place)
                    if answers is None:
                        place.stream, place.hand = None, Hand(place.hand.target_in_flight)
                    else:
                        yield place, answers
            except WorkerDiedError:
                self.end(place)

    def close(self) -> None:
        """End all workers."""
        import ray

        if not ray.is_initialized():
            return
        replies = [place.actor.close.remote() for place in self.places if place.ready and not place.hand]
        if replies:
            ray.wait(replies, num_returns=len(replies), timeout=CLOSE_SECONDS)
        for place in self.places:
            self.end(place)


def _busy(place: Place) -> bool:
    return place.reply is not None or bool(place.hand)


def _inbox(method: Any) -> Any:
    """The worker's ``method`` as one that is called while it computes."""
    return method.options(concurrency_group=INBOX)


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
