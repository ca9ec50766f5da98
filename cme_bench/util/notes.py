"""Notes: lines on what is being done, told to whoever listens. The command line shows them on stderr."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Note: TypeAlias = Callable[[str], None]
SECONDS = 10.0
"""No step is silent for longer."""


def unheard(message: str) -> None:
    """Listen to nothing."""


@contextmanager
def noted(note: Note, step: str, *, every: float = SECONDS) -> Iterator[None]:
    """Note ``step`` at its beginning, and how long it has taken every few seconds until it ends."""
    note(step)
    began, ended = time.monotonic(), threading.Event()

    def beat() -> None:
        while not ended.wait(every):
            note(f"{step}: {time.monotonic() - began:.0f} s so far")

    beating = threading.Thread(target=beat, name="noted", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
