"""A task's scoring, tried on answers made up for its first rows, before any model is loaded.

lm-eval accepts settings that fail when answers are scored: two-class F1 of four classes, a corpus metric with
several references, results that cannot be stored. They fail here instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import orjson

from cme_bench.harness.aggregations import aggregation_name
from cme_bench.harness.task_result import task_result
from cme_bench.prompts.formats import PromptFormat, resolve_format
from cme_bench.prompts.items import AskableTask, RenderedItem, render_item
from cme_bench.scoring.items import score_record
from cme_bench.scoring.record import Record, Scored, StoredResponse, scored_item
from cme_bench.tasks.spec import TaskSpec
from cme_bench.util.errors import UsageError, template_problem

MOST_ROWS = 4
_PLAIN: PromptFormat = resolve_format("plain", None, generated=False)


class TriedTask(AskableTask, Protocol):
    """The part of a task (:class:`cme_bench.tasks.build.Task`) that a trial needs."""

    @property
    def spec(self) -> TaskSpec: ...


def check_scoring(task: TriedTask) -> None:
    """Raise UsageError if no made-up answer to the first rows can be scored, or if their scores do not
    aggregate.

    Rows that do not render are left to those who render all of them.
    """
    if task.spec.metadata.get("answer"):
        return  # ours
    items = []
    for index in range(min(MOST_ROWS, len(task.docs))):
        try:
            items.append(render_item(task, index, _PLAIN))
        except UsageError:
            return
    place = task.spec.line("metric_list")
    errors: list[str] = []
    aggregated = 0
    for variant in range(MOST_ROWS):
        try:
            scores = [_scores(task, item, variant) for item in items]
        except Exception as error:  # a task's own code may raise anything
            errors.append(template_problem(error))
            continue
        aggregated += _aggregates(task, scores, errors, place)
    if errors and not aggregated:
        raise UsageError(f"{place}: task {task.name} cannot be scored: {errors[0]}")


def _scores(task: TriedTask, item: RenderedItem, variant: int) -> Mapping[str, Any]:
    answers = _answers(item)
    response = answers[(item.id + variant) % len(answers)]
    return score_record(task.lm_eval, item.doc, item.instances, response).scores


def _answers(item: RenderedItem) -> list[StoredResponse]:
    """Return responses to an item: each choice as the most likely one; or the right text, none, and a
    letter."""
    if not item.choices:
        texts = (item.target, "", "A", f"The answer is {item.target}.")
        return [StoredResponse(text=text, finish="stop") for text in texts]
    count = len(item.choices)
    return [
        StoredResponse(
            logprobs=[-1.0 - 0.25 * ((i - best) % count) for i in range(count)],
            greedy=[i == best for i in range(count)],
        )
        for best in range(count)
    ]


def _aggregates(task: TriedTask, scores: Sequence[Mapping[str, Any]], errors: list[str], place: str) -> bool:
    """Return whether these scores aggregate. UsageError if they never will: lm-eval's own aggregation fails,
    or the store changes what a task's own code looks at."""
    try:
        stored = orjson.loads(orjson.dumps(scores, option=orjson.OPT_SERIALIZE_NUMPY))
    except TypeError as error:
        raise UsageError(f"{place}: task {task.name}: its scores cannot be stored ({error})") from error
    try:
        task_result(task.spec, task.lm_eval, _records(stored))
    except Exception as error:
        errors.append(template_problem(error))
        if note := _own_aggregations(task):
            errors[-1] += f" ({note})"
            return False
        raise UsageError(f"{place}: task {task.name} cannot be scored: {errors[-1]}") from error
    for name, aggregate in _own_functions(task):
        raw = [s[name] for s in scores if name in s]
        kept = [s[name] for s in stored if name in s]
        if raw and not _equal(aggregate(raw), aggregate(kept)):
            raise UsageError(
                f"{place}: task {task.name}: what {name!r} says of an item cannot be stored as JSON"
            )
    return True


def _own_functions(task: TriedTask) -> Iterator[tuple[str, Any]]:
    """Yield the aggregations of a task's own code, by our name of the metric."""
    for pipeline in task.lm_eval._filters:
        for metric, aggregate in task.lm_eval.aggregation().items():
            if aggregation_name(aggregate).startswith("!function"):
                name = metric if pipeline.name == "none" else f"{metric}@{pipeline.name}"
                yield name, aggregate


def _own_aggregations(task: TriedTask) -> str:
    return ", ".join(aggregation_name(aggregate) for _, aggregate in _own_functions(task))


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b) or (math.isnan(a) and math.isnan(b))


def _records(scores: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
    response = StoredResponse(text="")
    for number, values in enumerate(scores):
        yield scored_item(number, Scored(scores=dict(values)), response)
