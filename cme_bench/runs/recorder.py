"""The records of a run's tasks: those in the store already, and answers as they come, scored and appended."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from msgspec.structs import replace

from cme_bench.engines.base import Response
from cme_bench.prompts.items import Item
from cme_bench.runs.planner import TaskPlan
from cme_bench.runs.records import TaskRecord
from cme_bench.runs.store import RunWriter, read_records, samples_file
from cme_bench.runs.thumbnails import Thumbnails
from cme_bench.scoring.items import combined_scores, score_record
from cme_bench.scoring.record import Record, StoredResponse, stored_response

MOST_KEPT = 20_000
"""Records of a task that are kept until its results are made, instead of being read again."""


@dataclass(eq=False)
class TaskInWork:
    """A task that is being answered.

    ``pending``: places of the items that are asked; ``stored``: records that were there when it began;
    ``done``: records that are there now; ``answers``: by item and repeat, those of items whose filters wait
    for more; ``written``: all its records, where it began with none and they are few, else None.
    """

    plan: TaskPlan
    hash: str
    pending: Sequence[int]
    stored: int
    done: int
    answers: dict[int, dict[int, Record]] = field(default_factory=dict)
    written: list[Record] | None = None

    def keep(self, records: Sequence[Record]) -> None:
        """Keep records that were written, unless reading them again would give others."""
        if self.written is not None and all(map(_reads_back, records)):
            self.written += records
        else:
            self.written = None

    @functools.cached_property
    def items(self) -> Mapping[int, Item]:
        """One of each item's requests, by its id."""
        return {item.id: item for item in self.plan.items}

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
        self._thumbnails = Thumbnails(writer.folder)
        self._works: dict[str, TaskInWork] = {}

    def open(self, plan: TaskPlan, task: TaskRecord) -> TaskInWork:
        """Return what of ``plan`` is left to ask; stored responses are scored again where they must be."""
        stored = _stored(plan, self._writer, task.hash)
        pending = [i for i, item in enumerate(plan.items) if (item.id, item.repeat) not in stored]
        work = TaskInWork(plan, task.hash, pending, stored=len(stored), done=len(stored))
        if plan.repeats == 1 and not (plan.combined or stored) and len(plan.items) <= MOST_KEPT:
            work.written = []
        self._works[plan.task.name] = work
        if plan.combined:
            for record in self._current(plan, task.hash):
                work.answers.setdefault(record.id, {})[record.repeat] = record
            self._combine(work, set(work.answers))
        return work

    def write(self, task: TaskInWork, answers: Sequence[tuple[int, Response]]) -> None:
        """Score answers, by the places of their items, and append them to the store."""
        plan = task.plan
        records = [
            _record(plan, plan.items[i], plan.keys[i], task.hash, stored_response(response, plan.marks))
            for i, response in answers
        ]
        self._writer.append(task.name, records)
        self._thumbnails.keep(image for i, _ in answers for image in plan.items[i].images)
        task.keep(records)
        if plan.combined:
            for record in records:
                task.answers.setdefault(record.id, {})[record.repeat] = record
            self._combine(task, {record.id for record in records})
        task.done += len(answers)

    def records(self, plan: TaskPlan, task: TaskRecord) -> Iterator[Record]:
        """Yield the records of a task as it is now, one at a time."""
        work = self._works.pop(plan.task.name, None)
        if work is None or work.written is None or work.hash != task.hash:
            return self._current(plan, task.hash)
        return iter(work.written)

    def _current(self, plan: TaskPlan, hash_: str) -> Iterator[Record]:
        keys = _keys(plan)
        for record in read_records(samples_file(self._writer.folder, plan.task.name)):
            if record.task == hash_ and keys.get((record.id, record.repeat)) == record.key:
                yield record

    def _combine(self, work: TaskInWork, ids: Set[int]) -> None:
        """Score all answers of each of these items together once they are there, and append that with the
        last of them."""
        plan = work.plan
        for id_ in ids:
            if len(work.answers[id_]) < plan.repeats:
                continue
            item = work.items[id_]
            answers = work.answers.pop(id_)
            last = answers[plan.repeats - 1]
            if last.combined is None:
                responses = [answers[repeat].response for repeat in range(plan.repeats)]
                scores = combined_scores(plan.task.lm_eval, item.doc, item.instances, responses)
                self._writer.append(work.name, [replace(last, combined=scores)])


def _reads_back(record: Record) -> bool:
    """Return whether a record is in the file as it is in memory: JSON has no infinities, and no tuples."""
    numbers = all(map(math.isfinite, record.response.logprobs or ()))
    return numbers and all(map(_is_plain, record.scores.values()))


def _is_plain(value: Any) -> bool:
    if type(value) is list:
        return all(map(_is_plain, value))
    return value is None or type(value) in (int, bool, str) or (type(value) is float and math.isfinite(value))


ItemKey: TypeAlias = tuple[int, int]
"""An item's id, and which of its answers."""


def _keys(plan: TaskPlan) -> dict[ItemKey, str]:
    return {(item.id, item.repeat): key for item, key in zip(plan.items, plan.keys, strict=True)}


def _stored(plan: TaskPlan, writer: RunWriter, hash_: str) -> set[ItemKey]:
    """Return the items, with the number of the answer, that need no computing.

    A response counts if its key is the item's; where it was scored under another version of the task, or
    lies behind a later record of the same item, it is scored again and appended, so that the last record of
    every item is the current one.
    """
    file = samples_file(writer.folder, plan.task.name)
    if not file.exists():
        return set()  # without the keys, which are made while the engine computes
    keys, wanted = _keys(plan), set(plan.keys)
    answered: set[str] = set()
    current: set[ItemKey] = set()
    for record in read_records(file):
        number, key = (record.id, record.repeat), record.key
        if key in wanted:
            answered.add(key)
        if record.task == hash_ and keys.get(number) == key:
            current.add(number)
        else:
            current.discard(number)
    stale = [
        i
        for i, item in enumerate(plan.items)
        if (item.id, item.repeat) not in current and plan.keys[i] in answered
    ]
    if stale:
        responses = _responses(file, {plan.keys[i] for i in stale})
        for i in stale:
            item, key = plan.items[i], plan.keys[i]
            response = responses.get((item.id, key)) or responses[None, key]
            writer.append(plan.task.name, [_record(plan, item, key, hash_, response)])
            current.add((item.id, item.repeat))
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
        doc=plan.task.lm_eval.recorded(item.doc),
        images=[image.digest for image in item.images] or None,
        repeat=item.repeat,
        filtered=scored.filtered if plan.repeats > 1 else None,
    )
