"""The process that writes a run folder: its lock file names it, so that readers can tell whether it goes on.

The text is ``PID HOST START``; it is removed when the writer ends, and stays when it is killed. Earlier
versions wrote the process alone, and left it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from cme_bench.util.errors import UsageError
from cme_bench.util.files import open_regular

LOCK = ".lock"
SILENT_SECONDS = 600.0
"""A writer on another machine is taken for dead once its folder has not changed for so long."""
_MOST = 400
_PARTS = 3
_ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Owner:
    """A process on a machine; ``start`` tells it from a later one with its number. Empty: not known."""

    pid: int
    host: str = ""
    start: str = ""

    @property
    def text(self) -> str:
        """Its description in a lock file."""
        return f"{self.pid} {self.host or '-'} {self.start or '-'}"

    def __str__(self) -> str:
        elsewhere = self.host and self.host != _host()
        return f"{self.pid} on {self.host}" if elsewhere else str(self.pid)

    @property
    def alive(self) -> bool | None:
        """Whether it still runs; None if it is on another machine."""
        if self.host and self.host != _host():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # it runs, as somebody else
            pass
        started = _start(self.pid)
        return started != _ENDED and (not (self.start and started) or self.start == started)


def this_process() -> Owner:
    """Return the owner that this process is."""
    return Owner(os.getpid(), _host(), _start(os.getpid()))


def owner_of(text: str) -> Owner | None:
    """Return the owner that a lock file names; None if it names none."""
    pid, host, start, *_ = [*text[:_MOST].split(), *[""] * _PARTS]
    if not (pid.isascii() and pid.isdigit() and 0 < int(pid) < 2**31):
        return None
    return Owner(int(pid), "" if host == "-" else host, "" if start == "-" else start)


def being_written(folder: Path, *, now: float | None = None) -> bool:
    """Return whether a process writes the run folder.

    Where the process cannot be asked (it is on another machine) the times of the folder's files decide: it
    is taken for dead after SILENT_SECONDS without a change.
    """
    try:
        with open_regular(folder / LOCK, inside=folder) as stream:
            owner = owner_of(stream.read(_MOST).decode(errors="replace"))
    except (OSError, UsageError):
        return False
    if owner is None:
        return False
    alive = owner.alive
    if alive is None or (alive and not owner.start):  # it cannot be asked, or may be another by now
        return (time.time() if now is None else now) - last_change(folder) < SILENT_SECONDS
    return alive


def last_change(folder: Path) -> float:
    """Return when a run folder last changed, in seconds since the epoch; 0 if that cannot be told."""
    times = [0.0]
    for file in (folder / "run.json", folder / "results.json", folder / LOCK):
        with contextlib.suppress(OSError):
            times.append(file.lstat().st_mtime)
    return max(times)


def _host() -> str:
    return "".join(platform.node().split())[:100]


def _start(pid: int) -> str:
    """Return when a process began, in ticks of the system's clock; empty where that cannot be read.

    A process that ended but was not waited for has ``ended`` in its place.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    state, *fields = status.rpartition(")")[2].split()
    return _ENDED if state in "ZX" else fields[18]
