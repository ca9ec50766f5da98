"""Progress of a run: one live bar on a terminal, a plain line every few seconds elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cme_bench.runs.progress import Silent
from cme_bench.terminal import markup, say, visible

LINE_SECONDS = 5.0


@contextmanager
def show_progress() -> Iterator[Silent]:
    """A listener that shows the run, fit for where stderr goes."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            yield LiveBar(progress)
    else:
        yield PlainLines()


class LiveBar(Silent):
    """One bar for the current task; finished tasks leave a line above it."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bar: TaskID | None = None

    def note(self, message: str) -> None:
        self.progress.console.print(visible(message), highlight=False, markup=False)

    def start(self, task: str, *, total: int, done: int) -> None:
        if done:
            self.note(f"{task}: resumed {done}/{total}")
        self.bar = self.progress.add_task(markup(task), total=total, completed=done)

    def advance(self, items: int) -> None:
        if self.bar is not None:
            self.progress.advance(self.bar, items)

    def finish(self, task: str, outcome: str) -> None:
        if self.bar is not None:
            self.progress.remove_task(self.bar)
        self.note(f"{task}: {outcome}")


class PlainLines(Silent):
    """Lines for logs: one when a task starts or ends, and one every few seconds between."""

    def __init__(self) -> None:
        self.task, self.total, self.done, self.shown = "", 0, 0, 0.0

    def note(self, message: str) -> None:
        say(message, file=sys.stderr)

    def start(self, task: str, *, total: int, done: int) -> None:
        self.task, self.total, self.done, self.shown = task, total, done, time.monotonic()
        self.note(f"{task}: resumed {done}/{total}" if done else f"{task}: {total} items")

    def advance(self, items: int) -> None:
        self.done += items
        if time.monotonic() - self.shown > LINE_SECONDS:
            self.shown = time.monotonic()
            self.note(f"{self.task}: {self.done}/{self.total}")

    def finish(self, task: str, outcome: str) -> None:
        self.note(f"{task}: {outcome}")
