"""Tasks of a run being answered: what is stored is reused, the rest asked of the engine and stored."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cme_bench.engines.base import Response, UnansweredError
from cme_bench.engines.inbox import Batches
from cme_bench.engines.logits import LogitsError, OverflowedError
from cme_bench.runs.manifest import Manifest
from cme_bench.runs.planner import TaskPlan
from cme_bench.runs.progress import Listener
from cme_bench.runs.recorder import Recorder, TaskInWork
from cme_bench.runs.responder import Responder
from cme_bench.scoring.record import Record
from cme_bench.util.errors import CmeError
from cme_bench.util.phases import phase

WINDOW_ITEMS = 16
WINDOW_SECONDS = 1.0
"""A flush window: finished items are stored once there are this many or they are this old."""

Numbered = tuple[int, Response]
"""A response with the number of its request, or with the place of its item."""


@dataclass(slots=True)
class Session:
    """One start of a run: the tasks' common responder, store and record.

    ``longest``: most tokens of any row that will be asked.
    """

    responder: Responder
    recorder: Recorder
    manifest: Manifest
    listener: Listener
    stopping: threading.Event
    longest: int

    def answer(self, plans: Sequence[TaskPlan]) -> Iterator[tuple[TaskPlan, int]]:
        """Have a record in the store of every item of these tasks, all generated or all scored.

        Yields each task in turn once it is done, with how many records are there; meanwhile the engine may
        go on with the next. Records are missing if no worker survived the item. If the run is asked to stop,
        no unfinished task is given.
        """
        tasks = [self.recorder.open(plan, self.manifest.run.tasks[plan.task.name]) for plan in plans]
        order = [(task, i) for task in tasks for i in task.pending]
        waiting = deque(tasks)
        self._show(waiting)
        yield from self._finished(waiting)
        with self._faults_named(order, waiting):
            for window in windows(self._serve(tasks)):
                with phase("records"):
                    for task, found in by_task(window, order):
                        self.recorder.write(task, found)
                        if task is waiting[0]:
                            self.listener.advance(len(found))
                    self.manifest.count(len(window), self.responder.loaded)
                if self.stopping.is_set():
                    return
                yield from self._finished(waiting)
        if not self.stopping.is_set():
            yield from self._finished(waiting, complete=False)

    def records(self, plan: TaskPlan) -> Iterator[Record]:
        """Yield the stored records of a task as it is now, one at a time."""
        return self.recorder.records(plan, self.manifest.run.tasks[plan.task.name])

    def _serve(self, tasks: Sequence[TaskInWork]) -> Iterator[Numbered]:
        """Yield responses to what is pending, by number in the order of items; a task is a batch."""
        batches = [[task.plan.items[i].request for i in task.pending] for task in tasks if task.pending]
        if not batches:
            return
        engine = self.responder.engine(batches[0][0], self.longest)
        engine.meanwhile = lambda: [task.plan.keys for task in tasks]
        try:
            yield from engine.serve(Batches(batches))
        finally:
            engine.meanwhile = None

    def _finished(
        self, waiting: deque[TaskInWork], *, complete: bool = True
    ) -> Iterator[tuple[TaskPlan, int]]:
        """Take the tasks from the front that are done; with ``complete`` false all."""
        while waiting and (waiting[0].complete or not complete):
            task = waiting.popleft()
            yield task.plan, task.done
            self._show(waiting)

    def _show(self, waiting: deque[TaskInWork]) -> None:
        """Show the progress of the first task that is not done."""
        if waiting:
            task = waiting[0]
            self.listener.start(task.name, total=len(task.plan.items), done=task.stored)
            self.listener.advance(task.done - task.stored)

    @contextmanager
    def _faults_named(
        self, order: Sequence[tuple[TaskInWork, int]], waiting: deque[TaskInWork]
    ) -> Iterator[None]:
        """Say task and item of what an engine raises; items without an answer are recorded as such."""
        try:
            yield
        except UnansweredError as error:
            for number, reason in error.reasons.items():
                task, i = order[number]
                self.manifest.unanswered.setdefault(task.name, {})[task.plan.items[i].id] = reason
        except LogitsError as error:
            self.responder.model.check_stored()  # which engine vllm does not look at
            name, item = waiting[0].name, None
            if error.request is not None:
                task, i = order[error.request]
                name, item = task.name, task.plan.items[i].id
            if self.responder.in_float16:
                raise OverflowedError(error.place(name, item)) from error
            raise error.within(name, item) from error


def by_task(
    window: Sequence[Numbered], order: Sequence[tuple[TaskInWork, int]]
) -> list[tuple[TaskInWork, list[Numbered]]]:
    """Return the responses of a window by task, each with the place of its item in ``order``."""
    found: dict[TaskInWork, list[Numbered]] = {}
    for number, response in window:
        task, i = order[number]
        found.setdefault(task, []).append((i, response))
    return list(found.items())


def windows(responses: Iterator[Numbered]) -> Iterator[list[Numbered]]:
    """Yield what is stored at a time. If the engine fails, what it finished before comes out first."""
    window: list[Numbered] = []
    opened = time.monotonic()
    failure: CmeError | None = None
    try:
        for response in responses:
            window.append(response)
            if len(window) >= WINDOW_ITEMS or time.monotonic() - opened > WINDOW_SECONDS:
                yield window
                window = []
                opened = time.monotonic()
    except CmeError as error:
        failure = error
    if window:
        yield window
    if failure is not None:
        raise failure
