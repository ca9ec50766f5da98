"""Values that were read from files, kept as long as those are as they were."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

ValueT = TypeVar("ValueT")

SETTLED_SECONDS = 2.0
"""A file that is younger may change again and look the same: a clock of files has coarse ticks."""
_Stamp: TypeAlias = tuple[int, int, int] | None
_reading: ContextVar[set[Path] | None] = ContextVar("reading", default=None)


def note_read(file: Path) -> None:
    """Tell whoever keeps what is read now that it comes from ``file``."""
    if (files := _reading.get()) is not None:
        files.add(file)


class Unchanged(Generic[ValueT]):
    """Keep one value that was read from files.

    It is read again once a file that ``note_read`` was told of, or the list of files, is another.
    """

    def __init__(self) -> None:
        self._kept: tuple[Sequence[Path], dict[Path, _Stamp], ValueT] | None = None

    def get(self, listed: Sequence[Path], read: Callable[[], ValueT]) -> ValueT:
        """Return what ``read`` gives of the files that are ``listed``."""
        if self._kept is not None:
            before, stamps, value = self._kept
            if before == listed and stamps == _stamps(stamps):
                return value
        started = time.time_ns()
        with _noted() as files:
            value = read()
        stamps = _stamps([*listed, *files])
        newest = max((stamp[0] for stamp in stamps.values() if stamp is not None), default=0)
        settled = newest < started - int(SETTLED_SECONDS * 1e9)
        self._kept = (listed, stamps, value) if settled else None
        return value


@contextlib.contextmanager
def _noted() -> Iterator[set[Path]]:
    files: set[Path] = set()
    token = _reading.set(files)
    try:
        yield files
    finally:
        _reading.reset(token)


def _stamps(files: Iterable[Path]) -> dict[Path, _Stamp]:
    """Return time, size and number of each file; None where it is absent."""
    return {file: _stamp(file) for file in files}


def _stamp(file: Path) -> _Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
