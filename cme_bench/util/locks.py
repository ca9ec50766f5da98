"""Locks between processes. The system drops a lock when the process that holds it dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def try_lock(stream: IO[Any]) -> bool:
    """Lock an open file until it is closed. False if another process holds it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock of ``file``, made if need be, for the block; wait for a process that has it."""
    with file.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
