"""A run that asks nothing: what it would ask, how many tokens that is, and about how long it would take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cme_bench.engines.base import GenerateRequest, Request, TokenIds
from cme_bench.engines.sorted_rows import SortedRows
from cme_bench.runs.cost import DryRun, TaskCost
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.manifest import Manifest
from cme_bench.runs.options import ModelOptions, RunOptions, check_model
from cme_bench.runs.planner import TaskPlan
from cme_bench.runs.questions import Questions
from cme_bench.runs.responder import Responder
from cme_bench.runs.runner import planned, prepare
from cme_bench.runs.speed import Work, estimated
from cme_bench.runs.store import read_records, samples_file
from cme_bench.util.notes import Note, unheard

Row = tuple[TokenIds, TokenIds]


def dry_run(options: RunOptions, note: Note = unheard) -> list[DryRun]:
    """Return what each run of these options would ask. Nothing is written, and no weights are loaded.

    Rows, tokenizer and config are read, and fetched where a run would fetch them. A server is asked what it
    serves. Raises UsageError for whatever a run would refuse before its first question.
    """
    check_model(options)
    questions = Questions(options, offline=options.offline)
    with open_engines(_on_this_machine(options), note) as engines:
        ready = prepare(questions, engines, note)
        return [
            _one(options, planned(options, questions.tasks, ready.planner, responder), responder, folder)
            for responder, folder in zip(ready.responders, ready.folders, strict=True)
        ]


def _on_this_machine(options: RunOptions) -> RunOptions:
    """Return options without a cluster, which is not needed to know what would be asked."""
    if options.engine != "ray":
        return options
    apart = {name: getattr(ModelOptions, name) for name in ("worker", "workers", "address")}
    return replace(options, engine=options.worker, **apart)


def _one(options: RunOptions, plans: Sequence[TaskPlan], responder: Responder, folder: Path) -> DryRun:
    Manifest.open(folder, options, responder)  # another model's folder is refused, as in a run
    tasks = [_cost(plan, folder) for plan in plans]
    model = responder.model
    work = Work(
        prompt_tokens=sum(task.distinct for task in tasks),
        scored_tokens=sum(task.scored for task in tasks),
        new_tokens=sum(task.new_tokens for task in tasks),
    )
    elsewhere = options.engine in {"ray", "server"}
    return DryRun(
        name=responder.name,
        folder=folder,
        engine=responder.identity["engine"],
        dtype=model.dtype_name,
        device="elsewhere" if elsewhere else str(model.device),
        tasks=tuple(tasks),
        seconds=None if elsewhere else estimated(model, work),
        notes=tuple(dict.fromkeys([*responder.notes, *(note for plan in plans for note in plan.notes)])),
    )


def _cost(plan: TaskPlan, folder: Path) -> TaskCost:
    answered = {record.key for record in read_records(samples_file(folder, plan.task.name))}
    left = [item.request for item, key in zip(plan.items, plan.keys, strict=True) if key not in answered]
    rows = [row for request in left for row in _rows(request)]
    fed = [len(prompt) + max(len(more) - 1, 0) for prompt, more in rows]
    generated = [request for request in left if isinstance(request, GenerateRequest)]
    return TaskCost(
        name=plan.task.name,
        domain=plan.task.spec.domain,
        items=sum(item.repeat == 0 for item in plan.items),
        answers=len(plan.items),
        stored=len(plan.items) - len(left),
        rows=len(rows),
        tokens=sum(fed),
        distinct=distinct_tokens(rows),
        scored=0 if generated else sum(len(more) for _, more in rows),
        new_tokens=sum(request.n_new for request in generated),
    )


def _rows(request: Request) -> Iterable[Row]:
    if isinstance(request, GenerateRequest):
        return [(request.prompt, (0,))]
    return request.rows


def distinct_tokens(rows: Sequence[Row]) -> int:
    """Count the tokens that are fed where every shared beginning is computed once."""
    if not rows:
        return 0
    ordered = SortedRows([(prompt, more or (0,)) for prompt, more in rows])
    return ordered.tokens(0, len(rows), 0)
