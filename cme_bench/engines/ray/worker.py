"""What runs in a worker's process: one engine, opened anew for each adapter, asked a shard at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cme_bench.engines.base import (
    Engine,
    EngineStats,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
)

BATCH_ITEMS = 64
BATCH_SECONDS = 0.25
"""Responses travel together, so many or so old."""


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
    description: dict[str, str]


@dataclass(frozen=True, slots=True)
class Answers:
    """Responses by place in the shard, and the engine's counters so far."""

    responses: tuple[tuple[int, LoglikelihoodResponse | GenerateResponse], ...]
    stats: EngineStats


class Worker:
    """One engine in a process of its own.

    ``environment``: variables that torch and others read when they are imported, which is later. (As ray's
    ``runtime_env`` they would keep ray from handing out a process that is already there.)
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._source: Source | None = None
        self._engine: Engine | None = None

    def open(self, make: Callable[[], Source], opening: tuple[Any, ...]) -> Opened:
        """Be ready to answer with ``opening`` (an adapter); ``make`` is called once, by the first."""
        if self._source is None:
            self._source = make()
        if self._engine is not None:
            self._engine.close()
            self._source.release()
            self._engine = None
        self._engine = self._source.open(*opening)
        return Opened(os.uname().nodename, os.getpid(), self._engine.describe())

    def answer(self, requests: Sequence[LoglikelihoodRequest | GenerateRequest]) -> Iterator[Answers]:
        """Responses to requests of one kind, as the engine finishes them."""
        assert self._engine is not None
        ask: Any = self._engine.loglikelihood
        if isinstance(requests[0], GenerateRequest):
            ask = self._engine.generate
        batch: list[tuple[int, Any]] = []
        opened = time.monotonic()
        for answer in ask(requests):
            batch.append(answer)
            if len(batch) >= BATCH_ITEMS or time.monotonic() - opened > BATCH_SECONDS:
                yield Answers(tuple(batch), replace(self._engine.stats))
                batch.clear()
                opened = time.monotonic()
        yield Answers(tuple(batch), replace(self._engine.stats))

    def close(self) -> None:
        """Free everything; the process is ended next."""
        if self._engine is not None:
            self._engine.close()
        if self._source is not None:
            self._source.close()
