"""One thread for everything that an engine computes, whoever asks.

A CUDA device and a stream are a thread's own. An engine in this process that several threads step would
launch work on several streams, which do not wait for one another.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class EngineThread:
    """Call functions in the thread that calls this, or all in one of its own from ``begin`` on."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def begin(self) -> None:
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="vllm")

    def call(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what ``work`` returns; raise what it raises."""
        if self._pool is None:
            return work(*args, **kwargs)
        return self._pool.submit(work, *args, **kwargs).result()
