"""Tasks of a run being answered: what is stored is reused, the rest asked of the engine and stored."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cme_bench.engines.base import Response, UnansweredError
from cme_bench.engines.inbox import Batches
from cme_bench.engines.logits import LogitsError
from cme_bench.errors import CmeError
from cme_bench.prompts.items import Item
from cme_bench.runs.manifest import Manifest
from cme_bench.runs.planner import Plan
from cme_bench.runs.progress import Listener
from cme_bench.runs.responder import Responder
from cme_bench.runs.store import RunWriter, read_records, samples_file
from cme_bench.scoring.items import score_record
from cme_bench.scoring.record import Record, StoredResponse, stored_response

WINDOW_ITEMS = 16
WINDOW_SECONDS = 1.0
"""A flush window: finished items are stored once there are this many or they are this old."""


@dataclass(slots=True)
class Session:
    """One start of a run: the tasks' common responder, store and record.

    ``longest``: most tokens of any row that will be asked.
    """

    responder: Responder
    writer: RunWriter
    manifest: Manifest
    listener: Listener
    stopping: threading.Event
    longest: int

    def answer(self, plans: Sequence[Plan]) -> Iterator[tuple[Plan, int]]:
        """Have a record in the store of every item of these tasks, all generated or all scored.

        Gives each task in turn once it is done, with how many records are there; meanwhile the engine may go
        on with the next. Records are missing if no worker survived the item. If the run is asked to stop, no
        unfinished task is given.
        """
        parts = [self._part(plan) for plan in plans]
        order = [(part, i) for part in parts for i in part.pending]
        waiting = deque(parts)
        self._show(waiting)
        yield from self._finished(waiting)
        try:
            for window in _windows(self._serve(parts)):
                for part, answers in _by_part(window, order):
                    self.writer.append(part.name, [part.record(i, response) for i, response in answers])
                    part.done += len(answers)
                    if part is waiting[0]:
                        self.listener.advance(len(answers))
                self.manifest.count(len(window), self.responder.loaded)
                if self.stopping.is_set():
                    return
                yield from self._finished(waiting)
        except UnansweredError as error:
            for number, reason in error.reasons.items():
                part, i = order[number]
                self.manifest.unanswered.setdefault(part.name, {})[part.plan.items[i].id] = reason
        except LogitsError as error:
            if error.request is None:
                raise error.within(waiting[0].name, None) from error
            part, i = order[error.request]
            raise error.within(part.name, part.plan.items[i].id) from error
        if not self.stopping.is_set():
            yield from self._finished(waiting, complete=False)

    def _part(self, plan: Plan) -> _Part:
        hash_ = self.manifest.run.tasks[plan.task.name].hash
        stored = _stored(plan, self.writer, hash_)
        pending = [i for i, item in enumerate(plan.items) if item.id not in stored]
        return _Part(plan, hash_, pending, stored=len(stored), done=len(stored))

    def _finished(self, waiting: deque[_Part], *, complete: bool = True) -> Iterator[tuple[Plan, int]]:
        """Take the tasks from the front that are done; with ``complete`` false all."""
        while waiting and (waiting[0].done == len(waiting[0].plan.items) or not complete):
            part = waiting.popleft()
            yield part.plan, part.done
            self._show(waiting)

    def _show(self, waiting: deque[_Part]) -> None:
        """Show the progress of the first task that is not done."""
        if waiting:
            part = waiting[0]
            self.listener.start(part.name, total=len(part.plan.items), done=part.stored)
            self.listener.advance(part.done - part.stored)

    def _serve(self, parts: Sequence[_Part]) -> Iterator[tuple[int, Response]]:
        """Yield responses to what is pending, by number in the order of items; a task is a batch."""
        tasks = [[part.plan.items[i].request for i in part.pending] for part in parts if part.pending]
        if tasks:
            yield from self.responder.engine(tasks[0][0], self.longest).serve(Batches(tasks))

    def records(self, plan: Plan) -> Iterator[Record]:
        """Yield the stored records of a task as it is now, one at a time."""
        hash_ = self.manifest.run.tasks[plan.task.name].hash
        keys = _keys(plan)
        for record in read_records(samples_file(self.writer.folder, plan.task.name)):
            if record.task == hash_ and keys.get(record.id) == record.key:
                yield record


@dataclass(slots=True, eq=False)
class _Part:
    """A task in work. ``pending``: places of the items that are asked; ``stored``: records that were there;
    ``done``: that are there now."""

    plan: Plan
    hash: str
    pending: Sequence[int]
    stored: int
    done: int

    @property
    def name(self) -> str:
        return self.plan.task.name

    def record(self, i: int, response: Any) -> Record:
        plan = self.plan
        return _record(plan, plan.items[i], plan.keys[i], self.hash, stored_response(response))


def _by_part(
    window: Sequence[tuple[int, Any]], order: Sequence[tuple[_Part, int]]
) -> Iterator[tuple[_Part, list[tuple[int, Any]]]]:
    """Divide a window by task: places of items, and their responses."""
    found: dict[_Part, list[tuple[int, Any]]] = {}
    for number, response in window:
        part, i = order[number]
        found.setdefault(part, []).append((i, response))
    yield from found.items()


def _windows(responses: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    """Yield the responses to store at a time. If the engine fails, what it finished before comes out
    first."""
    window: list[tuple[int, Any]] = []
    opened = time.monotonic()
    failure: CmeError | None = None
    try:
        for response in responses:
            window.append(response)
            if len(window) >= WINDOW_ITEMS or time.monotonic() - opened > WINDOW_SECONDS:
                yield window
                window = []
                opened = time.monotonic()
    except CmeError as err:
        failure = err
    if window:
        yield window
    if failure is not None:
        raise failure


def _keys(plan: Plan) -> dict[int, str]:
    return {item.id: key for item, key in zip(plan.items, plan.keys, strict=True)}


def _stored(plan: Plan, writer: RunWriter, hash_: str) -> set[int]:
    """Return the ids of this plan's items that need no computing.

    A response counts if its key is the item's; where it was scored under another version of the task, or
    lies behind a later record of the same item, it is scored again and appended, so that the last record of
    every item is the current one.
    """
    file = samples_file(writer.folder, plan.task.name)
    keys, wanted = _keys(plan), set(plan.keys)
    answered: set[str] = set()
    current: set[int] = set()
    for record in read_records(file):
        number, key = record.id, record.key
        if key in wanted:
            answered.add(key)
        if record.task == hash_ and keys.get(number) == key:
            current.add(number)
        else:
            current.discard(number)
    stale = [i for i, item in enumerate(plan.items) if item.id not in current and plan.keys[i] in answered]
    if stale:
        responses = _responses(file, {plan.keys[i] for i in stale})
        for i in stale:
            item, key = plan.items[i], plan.keys[i]
            response = responses.get((item.id, key)) or responses[None, key]
            writer.append(plan.task.name, [_record(plan, item, key, hash_, response)])
            current.add(item.id)
    return current


def _responses(file: Path, wanted: Set[str]) -> dict[tuple[int | None, str], StoredResponse]:
    """Return the last stored response of each key that is ``wanted``, by item and key, and by None and
    key."""
    found: dict[tuple[int | None, str], StoredResponse] = {}
    for record in read_records(file):
        if record.key in wanted:
            found[record.id, record.key] = found[None, record.key] = record.response
    return found


def _record(plan: Plan, item: Item, key: str, hash_: str, response: StoredResponse) -> Record:
    scored = score_record(plan.task.lm_eval, item.doc, item.instances, response)
    return Record(
        id=item.id,
        key=key,
        task=hash_,
        scores=scored.scores,
        answer=scored.answer,
        response=response,
        target=item.target,
        truncated=item.truncated,
        prompt=item.prompt,
        choices=list(item.choices),
        doc=item.doc,
    )
