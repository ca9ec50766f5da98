"""One model is built at a time: transformers does it under settings of the whole process.

They are torch's default dtype, and that no weights are tied. Who sets them gives back what was there
before: of two threads that load a model at once, the second one leaves for good what the first had set.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from cme_bench.util.early import Early

BuiltT = TypeVar("BuiltT")

BUILDING = threading.RLock()
"""Held while transformers makes a model."""
_begun: ContextVar[list[Early[Any]] | None] = ContextVar("begun", default=None)


def build_early(work: Callable[[], BuiltT]) -> Early[BuiltT]:
    """Begin ``work``, which builds a model, in another thread; ``builds_end`` waits for it."""
    early = Early(work)
    if (begun := _begun.get()) is not None:
        begun.append(early)
    return early


@contextmanager
def builds_end() -> Iterator[None]:
    """Leave no model that is still being built, also where the block raises: the caller may load one then,
    and does not know of ``BUILDING``."""
    mine: list[Early[Any]] = []
    outer = _begun.set(mine)
    try:
        yield
    finally:
        _begun.reset(outer)
        for early in mine:
            early.wait()
