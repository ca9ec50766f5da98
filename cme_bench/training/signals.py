"""A signal asks a training to save and stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from cme_bench.runs.progress import Listener


class Stoppable(Protocol):
    """Something that looks at ``interrupted`` from time to time."""

    interrupted: bool
    listener: Listener


@contextmanager
def stop_on_signal(watch: Stoppable) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM in the block ask ``watch`` to save and stop; a second acts as ever."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        watch.interrupted = True
        watch.listener.note("stopping after this step; the same command will go on")
        signal.signal(number, before[signal.Signals(number)])

    try:
        for number in before:
            signal.signal(number, ask)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
