"""The worker's process: one engine, opened anew for each adapter, which gets shard after shard."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cme_bench.engines.base import Engine, EngineStats, Response
from cme_bench.engines.inbox import Mailbox, Numbered

INBOX = "inbox"
"""Group of methods that ray calls while others run."""
BATCH_ITEMS = 64
BATCH_SECONDS = 0.25
"""Responses travel together: so many, or so old, or thrice as many as are left.

So the driver learns in time that a worker will soon have nothing to do."""


class Source(Protocol):
    """Make a worker's engines; the base model stays loaded between them."""

    def open(self, *opening: Any) -> Engine: ...
    def release(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Opened:
    """Say that a worker's engine is ready, and what it is."""

    host: str
    pid: int
    target_in_flight: int
    description: dict[str, str]


@dataclass(frozen=True, slots=True)
class Answers:
    """Hold responses with the numbers of their requests, and the engine's counters and description so far."""

    responses: tuple[tuple[int, Response], ...]
    stats: EngineStats
    description: dict[str, str]


class Worker:
    """Run one engine in a process of its own.

    ``environment``: variables that torch and others read when they are imported, which is later. (As ray's
    ``runtime_env`` they would keep ray from handing out a process that is already there.)
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._source: Source | None = None
        self._engine: Engine | None = None
        self._mailbox = Mailbox()

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
        return Opened(os.uname().nodename, os.getpid(), engine.target_in_flight, engine.describe())

    def put(self, shard: Sequence[Numbered]) -> None:
        """Take requests to answer, of one kind, each with its number."""
        self._mailbox.put(shard)

    def put_no_more(self) -> None:
        """Let ``answer`` end when everything is answered."""
        self._mailbox.close()

    def answer(self) -> Iterator[Answers]:
        """Yield responses to what is put, as the engine finishes them; what is put meanwhile joins in."""
        assert self._engine is not None
        self._mailbox.reopen()
        batch: list[tuple[int, Response]] = []
        opened = time.monotonic()
        for n_answered, answer in enumerate(self._engine.serve(self._mailbox), start=1):
            batch.append(answer)
            full = len(batch) >= min(BATCH_ITEMS, 3 * (self._mailbox.n_taken - n_answered))
            if full or time.monotonic() - opened > BATCH_SECONDS:
                yield Answers(tuple(batch), replace(self._engine.stats), self._engine.describe())
                batch.clear()
                opened = time.monotonic()
        yield Answers((), replace(self._engine.stats), self._engine.describe())

    def close(self) -> None:
        """Free everything; the process ends next."""
        if self._engine is not None:
            self._engine.close()
        if self._source is not None:
            self._source.close()
