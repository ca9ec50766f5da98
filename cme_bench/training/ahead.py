"""Things made in another thread a few steps before they are needed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
AHEAD = 4
"""Steps whose batches are made before they are needed."""


def made_ahead(make: Callable[[int], T], numbers: Iterable[int]) -> Generator[T, None, None]:
    """Yield ``make`` of each number in turn, made up to ``AHEAD`` before; its errors are raised in turn."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        waiting: list[Future[T]] = []
        following = iter(numbers)
        try:
            while True:
                while len(waiting) < AHEAD and (number := next(following, None)) is not None:
                    waiting.append(pool.submit(make, number))
                if not waiting:
                    return
                yield waiting.pop(0).result()
        finally:
            for each in waiting:
                each.cancel()
