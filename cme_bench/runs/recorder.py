"""The records of a run's tasks: those in the store already, and answers as they come, scored and appended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from cme_bench.engines.base import Response
from cme_bench.prompts.items import Item
from cme_bench.runs.planner import TaskPlan
from cme_bench.runs.records import TaskRecord
from cme_bench.runs.store import RunWriter, read_records, samples_file
from cme_bench.scoring.items import score_record
from cme_bench.scoring.record import Record, StoredResponse, stored_response


@dataclass(slots=True, eq=False)
class TaskInWork:
    """A task that is being answered.

    ``pending``: places of the items that are asked; ``stored``: records that were there when it began;
    ``done``: records that are there now.
    """

    plan: TaskPlan
    hash: str
    pending: Sequence[int]
    stored: int
    done: int

    @property
    def name(self) -> str:
        """The task's name."""
        return self.plan.task.name

    @property
    def complete(self) -> bool:
        """Whether every item has its record."""
        return self.done == len(self.plan.items)


class Recorder:
    """Keeps the records of the tasks of one run, by the hashes in its ``run.json``."""

    def __init__(self, writer: RunWriter) -> None:
        self._writer = writer

    def open(self, plan: TaskPlan, task: TaskRecord) -> TaskInWork:
        """Return what of ``plan`` is left to ask; stored responses are scored again where they must be."""
        stored = _stored(plan, self._writer, task.hash)
        pending = [i for i, item in enumerate(plan.items) if item.id not in stored]
        return TaskInWork(plan, task.hash, pending, stored=len(stored), done=len(stored))

    def write(self, task: TaskInWork, answers: Sequence[tuple[int, Response]]) -> None:
        """Score answers, by the places of their items, and append them to the store."""
        plan = task.plan
        records = [
            _record(plan, plan.items[i], plan.keys[i], task.hash, stored_response(response))
            for i, response in answers
        ]
        self._writer.append(task.name, records)
        task.done += len(answers)

    def records(self, plan: TaskPlan, task: TaskRecord) -> Iterator[Record]:
        """Yield the records of a task as it is now, one at a time."""
        keys = _keys(plan)
        for record in read_records(samples_file(self._writer.folder, plan.task.name)):
            if record.task == task.hash and keys.get(record.id) == record.key:
                yield record


def _keys(plan: TaskPlan) -> dict[int, str]:
    return {item.id: key for item, key in zip(plan.items, plan.keys, strict=True)}


def _stored(plan: TaskPlan, writer: RunWriter, hash_: str) -> set[int]:
    """Return the ids of the items that need no computing.

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
    """Return the last stored response of each ``wanted`` key, by item and key, and by None and key."""
    found: dict[tuple[int | None, str], StoredResponse] = {}
    for record in read_records(file):
        if record.key in wanted:
            found[record.id, record.key] = found[None, record.key] = record.response
    return found


def _record(plan: TaskPlan, item: Item, key: str, hash_: str, response: StoredResponse) -> Record:
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
