"""The display of a training: one live bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cme_bench.terminal import say, visible

LINE_SECONDS = 10.0


class Silent:
    """Shows nothing; the base of those that do."""

    def note(self, message: str) -> None:
        """Take a note that is worth a line."""

    def start(self, *, steps: int, done: int) -> None:
        """Begin; ``done`` of the ``steps`` lie behind it."""

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Count ``step`` steps as done; ``loss`` is the mean over the tokens since the last call."""

    def finish(self) -> None:
        """End: no more steps follow."""


class LiveBar(Silent):
    """One bar with the current loss and speed."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def note(self, message: str) -> None:
        self.progress.console.print(visible(message), highlight=False, markup=False, soft_wrap=True)

    def start(self, *, steps: int, done: int) -> None:
        self.bar = self.progress.add_task("training", total=steps, completed=done)

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        text = f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s"
        self.progress.update(self.bar, completed=step, description=text)

    def finish(self) -> None:
        self.progress.remove_task(self.bar)


class PlainLines(Silent):
    """Lines for logs, one every few seconds."""

    def __init__(self) -> None:
        self.steps, self.shown = 0, 0.0

    def note(self, message: str) -> None:
        say(message, file=sys.stderr)

    def start(self, *, steps: int, done: int) -> None:
        self.steps, self.shown = steps, time.monotonic()
        self.note(f"training: step {done}/{steps}")

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        if time.monotonic() - self.shown > LINE_SECONDS or step == self.steps:
            self.shown = time.monotonic()
            self.note(f"step {step}/{self.steps}  loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s")


@contextmanager
def show_training(*, main_process: bool = True) -> Iterator[Silent]:
    """Give a listener fit for where stderr goes; silent in every process but the main one."""
    if not main_process:
        yield Silent()
    elif sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            yield LiveBar(progress)
    else:
        yield PlainLines()
