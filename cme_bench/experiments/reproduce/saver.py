"""Keeping the state up to date beside the work: a machine may be lost at any second, with all on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SECONDS = 45.0
"""Between two looks at what is new."""


@contextmanager
def saved_meanwhile(save: Callable[[], Sequence[Path]], note: Callable[[str], None]) -> Iterator[None]:
    """Call ``save`` again and again in a thread of its own until the block ends, and once after it, however
    it ends; tell which files there are then.

    What it raises in the thread is told and does not end the work; after the block it is raised.
    """
    done = threading.Event()

    def often() -> None:
        while not done.wait(SECONDS):
            try:
                save()
            except Exception as error:  # the work is worth more than its copy
                note(f"the state is not saved: {error}")
                return

    thread = threading.Thread(target=often, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        files = save()
        note(f"state: {len(files)} files, {sum(file.stat().st_size for file in files):,} bytes")
