"""Work that begins before its result is wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

ResultT = TypeVar("ResultT")


class Early(Generic[ResultT]):
    """Do ``work`` in another thread from now on.

    A process does not end before its work does. What fails is raised by ``result`` only.
    """

    def __init__(self, work: Callable[[], ResultT]) -> None:
        self._work = work
        self._done: list[ResultT] = []
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="cme-bench-early")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._done.append(self._work())
        except BaseException as error:
            self._failed = error

    def wait(self) -> None:
        """Wait until the work has ended or failed."""
        self._thread.join()

    def result(self) -> ResultT:
        """Wait for the work; return its result, or raise what it raised."""
        self.wait()
        if self._failed is not None:
            raise self._failed
        return self._done[0]
