"""Threads that take turns: one at a time runs, until it waits for something that computes elsewhere.

So code that was written for one thread serves several, and changes hands at known places only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_held = threading.local()


class Turns:
    """A turn that one thread has at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the turn within the block, except where it is let go."""
        with self._lock:
            _held.lock = self._lock
            try:
                yield
            finally:
                _held.lock = None


@contextmanager
def let_go() -> Iterator[None]:
    """Let others have this thread's turn within the block; nothing where it has none."""
    lock: threading.Lock | None = getattr(_held, "lock", None)
    if lock is None:
        yield
        return
    lock.release()
    try:
        yield
    finally:
        lock.acquire()
