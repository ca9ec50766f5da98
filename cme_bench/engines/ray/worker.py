"""What runs in a worker's process: one engine, opened anew for each adapter, fed shard by shard."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

from cme_bench.engines.base import (
    Engine,
    EngineStats,
    Feed,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
)

INBOX = "inbox"
"""Group of methods that ray calls while others run."""
BATCH_ITEMS = 64
BATCH_SECONDS = 0.25
"""Responses travel together, so many or so old, or thrice as many as are left: the driver learns in time that
a worker will soon have nothing to do."""

Asked: TypeAlias = tuple[int, LoglikelihoodRequest | GenerateRequest]
"""A request and its index in the whole."""


class Source(Protocol):
    """Makes a worker's engines: the base model stays loaded between them."""

    def open(self, *opening: Any) -> Engine: ...
    def release(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Opened:
    """What a worker says once its engine is ready."""

    host: str
    pid: int
    appetite: int
    description: dict[str, str]


@dataclass(frozen=True, slots=True)
class Answers:
    """Responses, each with the index of its request, the engine's counters so far, and what it says of itself
    now that it has answered."""

    responses: tuple[tuple[int, LoglikelihoodResponse | GenerateResponse], ...]
    stats: EngineStats
    description: dict[str, str]


class Worker:
    """One engine in a process of its own.

    ``environment``: variables that torch and others read when they are imported, which is later. (As ray's
    ``runtime_env`` they would keep ray from handing out a process that is already there.)
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._source: Source | None = None
        self._engine: Engine | None = None
        self._inbox: queue.SimpleQueue[Sequence[Asked] | None] = queue.SimpleQueue()
        self._unanswered = 0

    def open(self, make: Callable[[], Source], opening: tuple[Any, ...]) -> Opened:
        """Be ready to answer with ``opening`` (an adapter); ``make`` is called once, by the first."""
        if self._source is None:
            self._source = make()
        if self._engine is not None:
            self._engine.close()
            self._source.release()
            self._engine = None
        self._engine = self._source.open(*opening)
        engine = self._engine
        return Opened(os.uname().nodename, os.getpid(), engine.appetite, engine.describe())

    def put(self, shard: Sequence[Asked] | None) -> None:
        """Requests to answer, of one kind, each with its index; None: no more will come."""
        self._inbox.put(shard)

    def answer(self) -> Iterator[Answers]:
        """Responses to what is put, as the engine finishes them; what is put meanwhile joins in."""
        assert self._engine is not None
        self._unanswered = 0
        batch: list[tuple[int, Any]] = []
        opened = time.monotonic()
        for answer in self._engine.serve(self._feed()):
            batch.append(answer)
            self._unanswered -= 1
            full = len(batch) >= min(BATCH_ITEMS, 3 * self._unanswered)
            if full or time.monotonic() - opened > BATCH_SECONDS:
                yield Answers(tuple(batch), replace(self._engine.stats), self._engine.describe())
                batch.clear()
                opened = time.monotonic()
        yield Answers((), replace(self._engine.stats), self._engine.describe())

    def _feed(self) -> Feed:
        while True:
            try:
                shard = self._inbox.get(block=not self._unanswered)
            except queue.Empty:
                yield None
                continue
            if shard is None:
                return
            self._unanswered += len(shard)
            yield from shard

    def close(self) -> None:
        """Free everything; the process is ended next."""
        if self._engine is not None:
            self._engine.close()
        if self._source is not None:
            self._source.close()
