"""Progress on stderr: one live bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cme_bench.runs.progress import Listener
from cme_bench.util.terminal import markup, say, visible

LINE_SECONDS = 5.0


@contextmanager
def show_progress(*, shown: bool = True) -> Iterator[Listener]:
    """Yield a listener that shows the work, fit for where stderr goes; a silent one unless ``shown``."""
    if not shown:
        yield Listener()
    elif sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            yield LiveBar(progress)
    else:
        yield PlainLines()


class LiveBar(Listener):
    """One bar for the current task; finished tasks leave a line above it."""

    def __init__(self, progress: Progress, name: str = "") -> None:
        self.progress = progress
        self.name = name
        self.bar: TaskID | None = None
        self.task = ""

    def beside(self, name: str) -> Listener:
        return LiveBar(self.progress, f"{name}: ")

    def note(self, message: str) -> None:
        self.progress.console.print(visible(message), highlight=False, markup=False, soft_wrap=True)

    def start(self, task: str, *, total: int, done: int) -> None:
        task = f"{self.name}{task}"
        if done:
            self.note(f"{task}: resumed {done}/{total}")
        self.task = task
        self.bar = self.progress.add_task(markup(task), total=total, completed=done)

    def advance(self, items: int, detail: str = "") -> None:
        if self.bar is not None:
            description = markup(f"{self.task}  {detail}" if detail else self.task)
            self.progress.update(self.bar, advance=items, description=description)

    def finish(self, task: str, outcome: str = "") -> None:
        if self.bar is not None:
            self.progress.remove_task(self.bar)
        if outcome:
            self.note(f"{self.name}{task}: {outcome}")


class PlainLines(Listener):
    """Lines for logs: one when a task starts or ends, and one every few seconds between."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.task, self.total, self.done, self.shown = "", 0, 0, 0.0

    def beside(self, name: str) -> Listener:
        return PlainLines(f"{name}: ")

    def note(self, message: str) -> None:
        say(message, file=sys.stderr)

    def start(self, task: str, *, total: int, done: int) -> None:
        task = f"{self.name}{task}"
        self.task, self.total, self.done, self.shown = task, total, done, time.monotonic()
        self.note(f"{task}: resumed {done}/{total}" if done else f"{task}: {total} items")

    def advance(self, items: int, detail: str = "") -> None:
        self.done += items
        if time.monotonic() - self.shown > LINE_SECONDS or (detail and self.done == self.total):
            self.shown = time.monotonic()
            self.note(f"{self.task}: {self.done}/{self.total}{f'  {detail}' if detail else ''}")

    def finish(self, task: str, outcome: str = "") -> None:
        if outcome:
            self.note(f"{self.name}{task}: {outcome}")
