"""Scores stored responses again, with the task files and scoring code of today, without a model.

Needs the task's rows (as the run did) and, where prompts are made with a chat template, the model's tokenizer
if it is still there. After a crash at any moment the same command goes on: records are appended first, and
``run.json`` and ``results.json`` are replaced at the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from msgspec.structs import replace

from cme_bench.harness.task_result import task_result
from cme_bench.models.checkpoint import Checkpoint
from cme_bench.models.load import load_tokenizer
from cme_bench.models.records import ModelRecord
from cme_bench.prompts.formats import PromptFormat, resolve_format
from cme_bench.prompts.items import render_item
from cme_bench.runs.folder import (
    current_records,
    last_answers,
    overlaid,
    read_arguments,
    read_both,
    run_file,
    wanted_items,
)
from cme_bench.runs.packed import refuse_packed
from cme_bench.runs.planner import task_hash
from cme_bench.runs.records import RescoreRecord, TaskRecord
from cme_bench.runs.results import write_results
from cme_bench.runs.store import RunWriter, record_bytes, samples_file
from cme_bench.scoring.aggregate import TaskResult
from cme_bench.scoring.generation import GENERATE_UNTIL
from cme_bench.scoring.items import combined_scores, score_record
from cme_bench.scoring.record import Record
from cme_bench.scoring.scales import Measure
from cme_bench.scoring.ties import rounds_as
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.open_source import open_source
from cme_bench.tasks.suite import load_suite
from cme_bench.util.decode import json_value
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json, write_json
from cme_bench.util.provenance import commit, versions


@dataclass(frozen=True, slots=True)
class RescoredTask:
    """``changed`` of ``items`` got other scores; ``before`` and ``after`` are the main metric's means.

    ``unchecked``: no tokenizer was at hand, so that prompts were not rendered anew and compared.
    """

    task: str
    metric: str
    items: int
    changed: int
    before: float
    after: float
    unchecked: bool
    measure: Measure


def rescore(folder: Path, *, data: str | None = None, allow_code: bool = False) -> list[RescoredTask]:
    """Rescore every finished task of a run folder and rewrite its results.

    ``data`` replaces the run's ``--data``, for rows that have moved. ``allow_code``: run ``!function`` of the
    task files that the run included; what the folder says of that is not asked, it may be a stranger's.
    Raises UsageError if rows, prompts or choices are no longer those that were answered: then the responses
    belong to other questions.
    """
    run, old = read_both(folder)
    refuse_packed(folder)
    arguments = read_arguments(run, run_file(folder))
    suite = load_suite([Path(p) for p in arguments.include or ()], allow_code=allow_code)
    source = open_source(data or run.identity.data, offline=arguments.offline)
    tokenizer = _tokenizer(run.model)
    outcomes: list[RescoredTask] = []
    results: list[TaskResult] = []
    with RunWriter(folder) as writer:
        for name, result in old.tasks.items():
            planned = run.tasks[name]
            task = build_task(suite.task(name), suite, source, shots=planned.shots)
            stored = _answers(folder, name, planned)
            unchecked = planned.prompt_format.startswith("chat") and tokenizer is None
            asked = None if unchecked else _format(planned, tokenizer, run.arguments)
            hash_ = task_hash(task, planned.prompt_format, planned.policy, planned.overrides)
            fresh = [_rescored(task, record, asked, hash_, run.seed) for record in stored]
            if planned.combined:
                fresh = _combined(task, fresh, asked, run.seed)
            renewed = [new for new, record in zip(fresh, stored, strict=True) if new != record]
            changed = {
                new.id
                for new, record in zip(fresh, stored, strict=True)
                if (new.scores, new.combined) != (record.scores, record.combined)
            }
            writer.append(name, renewed)
            run.tasks[name] = replace(planned, hash=hash_, primary=task.spec.primary)
            dtype = rounds_as(run.identity.dtype, run.identity.states)
            results.append(task_result(task.spec, task.lm_eval, fresh, dtype=dtype, repeats=planned.repeats))
            before = result.metrics.get(results[-1].primary)
            outcomes.append(
                RescoredTask(
                    task=name,
                    metric=results[-1].primary,
                    items=len({record.id for record in fresh}),
                    changed=len(changed),
                    before=math.nan if before is None or before.value is None else before.value,
                    after=results[-1].score.value,
                    unchecked=unchecked,
                    measure=results[-1].measure,
                )
            )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        done = RescoreRecord(at=now, commit=commit(), versions=versions())
        run.rescored = [*(run.rescored or ()), done]
        write_json(run_file(folder), overlaid(read_json(run_file(folder)), json_value(run)))
        write_results(folder, run, results)
    return outcomes


def _tokenizer(model: ModelRecord) -> Any:
    """Return the run's tokenizer; None if its folder is gone."""
    if model.path is None or not Path(model.path).is_dir():
        return None
    return load_tokenizer(Checkpoint(model.name, Path(model.path), model.hash or ""))


def _answers(folder: Path, name: str, planned: TaskRecord) -> list[Record]:
    """Return the records of a task, of several answers to an item each, by ascending id and repeat."""
    if planned.repeats == 1:
        return current_records(folder, name, planned, any_version=True)
    file = samples_file(folder, name)
    wanted = wanted_items(file, planned)
    answers = last_answers(file, wanted, planned.repeats)
    return [record for item in wanted for record in answers[item]]


def _combined(task: Task, records: Sequence[Record], asked: PromptFormat | None, seed: int) -> list[Record]:
    """Return the records with what the task's own filters make of all answers to an item."""
    found: list[Record] = []
    for id_, group in itertools.groupby(records, key=lambda record: record.id):
        *others, last = group
        instances = _instances(task, last, asked, seed)
        responses = [record.response for record in (*others, last)]
        scores = combined_scores(task.lm_eval, task.docs[id_], instances, responses)
        found += [*others, replace(last, combined=scores)]
    return found


def _format(planned: TaskRecord, tokenizer: Any, arguments: Mapping[str, Any] | None) -> PromptFormat:
    generated = planned.output_type == GENERATE_UNTIL
    name, _, system = planned.prompt_format.partition("+")
    return resolve_format(
        name,
        tokenizer,
        generated=generated,
        system=(arguments or {}).get("system") if system else None,
        thinking=planned.thinking,
    )


def _rescored(task: Task, record: Record, asked: PromptFormat | None, hash_: str, seed: int) -> Record:
    """Return ``record`` with the scores and the target of today. UsageError if it answers another
    question."""
    number = record.id
    if number >= len(task.docs):
        raise UsageError(f"{task.name}: item {number} is stored, but there are {len(task.docs)} rows now")
    doc = task.docs[number]
    if orjson.loads(record_bytes(task.lm_eval.recorded(doc))) != record.doc:
        raise UsageError(
            f"{task.place(number)}: task {task.name}: item {number} is another row than the one that was "
            "answered; run it again"
        )
    instances: Sequence[Any]
    if asked is None:
        instances, target = _instances(task, record, None, seed), record.target
    else:
        rendered = render_item(task, number, asked, seed)
        if (rendered.contexts[0], list(rendered.choices)) != (record.prompt, record.choices):
            raise UsageError(
                f"task {task.name} ({task.spec.path}) asks item {number} otherwise than the stored response "
                "was asked; run it again"
            )
        instances, target = rendered.instances, rendered.target
    scored = score_record(task.lm_eval, doc, instances, record.response)
    filtered = scored.filtered if record.filtered is not None else None
    return replace(
        record, scores=scored.scores, answer=scored.answer, filtered=filtered, task=hash_, target=target
    )


def _instances(task: Task, record: Record, asked: PromptFormat | None, seed: int) -> Sequence[Any]:
    """Return lm-eval's requests of an item; its stored prompt is taken where none can be rendered."""
    if asked is not None:
        return render_item(task, record.id, asked, seed).instances
    metadata = (task.name, record.id, 1)
    built = task.lm_eval.construct_requests(
        doc=task.docs[record.id], ctx=record.prompt, metadata=metadata, apply_chat_template=True
    )
    return built if isinstance(built, list) else [built]
