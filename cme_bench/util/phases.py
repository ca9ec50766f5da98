"""Where the seconds of a command go: what its main thread does, one thing at a time, and what is done beside.

A phase within a phase counts for itself alone. ``phase`` is the clock of this process.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

REST = "other"
Spent = tuple[Mapping[str, float], Mapping[str, float]]
"""Seconds by phase of the main thread, and of what was done beside it."""
_LONGEST_START = 60.0
"""A process that is older when this module is imported has done other things before."""


class Phases:
    """Counts seconds by phase. ``before``: seconds that had passed already, of the phase ``start``."""

    def __init__(self, before: float = 0.0) -> None:
        self._mine: dict[str, float] = defaultdict(float, {"start": before})
        self._others: dict[str, float] = defaultdict(float)
        self._stack = ["start"]
        self._mark = time.perf_counter()
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block as phase ``name``; in another thread than the main one as work beside it."""
        if threading.current_thread() is not threading.main_thread():
            began = time.perf_counter()
            try:
                yield
            finally:
                with self._lock:
                    self._others[name] += time.perf_counter() - began
            return
        self._turn()
        if self._stack == ["start"]:
            self._stack = [REST]
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def _turn(self) -> None:
        now = time.perf_counter()
        self._mine[self._stack[-1]] += now - self._mark
        self._mark = now

    def seconds(self) -> Spent:
        """Return seconds by phase so far: of the main thread, in the order in which they began, the rest
        last; and of what was done beside it."""
        self._turn()
        with self._lock:
            others = dict(self._others)
        mine = {name: spent for name, spent in self._mine.items() if name != REST}
        return mine | {REST: self._mine[REST]}, others

    def since(self, before: Spent) -> Spent:
        """Return what :meth:`seconds` does, without what it returned before."""
        mine, others = (
            {name: spent - then.get(name, 0.0) for name, spent in now.items()}
            for now, then in zip(self.seconds(), before, strict=True)
        )
        return mine, others


def _age() -> float:
    """Return how many seconds ago this process began, where the system says so; else 0."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return age if 0 <= age < _LONGEST_START else 0.0


phase = Phases(_age())
"""The clock of this process."""
