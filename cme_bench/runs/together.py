"""Runs of several adapters at the same time, by one engine that holds them all.

Each run is a thread, and they take turns: while one waits for the engine, another plans or scores. What a run
asks, keeps and writes is the same as when it runs alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from cme_bench.util.errors import EngineDiedError, InterruptedRun
from cme_bench.util.turns import Turns, let_go

T = TypeVar("T")


class Stopping(threading.Event):
    """Set where runs are to stop after what they have in work; ``asked``: by the user, for good."""

    asked = False

    def ask(self) -> None:
        """Stop for good."""
        self.asked = True
        self.set()


class Company:
    """Those who run at the same time, or one that runs alone."""

    def __init__(self, size: int, stopping: threading.Event) -> None:
        self._barrier = threading.Barrier(size)
        self._stopping = stopping
        self._longest = 0

    @property
    def alone(self) -> bool:
        """Tell whether nobody else runs at the same time."""
        return self._barrier.parties == 1

    def agree(self, longest: int) -> int:
        """Return the most of what all say, once all have said it: one engine is started for all."""
        self._longest = max(self._longest, longest)
        try:
            with let_go():
                self._barrier.wait()
        except threading.BrokenBarrierError:
            raise InterruptedRun("stopped, since another adapter's run failed") from None
        return self._longest

    def fail(self) -> None:
        """Stop the others after what they have in work."""
        self._stopping.set()
        self._barrier.abort()


def _second_hand(error: BaseException) -> int:
    """Return how likely it is that an error only followed from another's."""
    return 2 * isinstance(error, InterruptedRun) + isinstance(error, EngineDiedError)


def run_together(works: Sequence[Callable[[Company], T]], stopping: threading.Event) -> list[T]:
    """Return what all ``works`` return.

    If one raises, the others stop and keep what they have. The error that began it is raised.
    """
    company, turns = Company(len(works), stopping), Turns()
    if len(works) == 1:
        return [works[0](company)]

    def one(work: Callable[[Company], T]) -> T:
        with turns.taken():
            try:
                return work(company)
            except BaseException:
                company.fail()
                raise

    with ThreadPoolExecutor(len(works), thread_name_prefix="run") as pool:
        futures = [pool.submit(one, work) for work in works]
        errors = [error for future in as_completed(futures) if (error := future.exception()) is not None]
    if errors:
        raise min(errors, key=_second_hand)
    return [future.result() for future in futures]
