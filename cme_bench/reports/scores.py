"""Item scores of several runs side by side, and how items add up to domains and the average."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cme_bench.reports.runs import ALLOW, RunView
from cme_bench.runs.folder import current_records
from cme_bench.runs.packed import same_gold
from cme_bench.runs.records import MetricRecord
from cme_bench.scoring.record import Record
from cme_bench.scoring.scales import USUAL, Measure
from cme_bench.util.errors import UsageError

AVERAGE = "average"


class NoItemMeanError(UsageError):
    """A task's metric is no mean over its items, so that items cannot be paired."""


@dataclass(frozen=True, slots=True)
class TaskScores:
    """One task of m runs: ``scores`` [n, m] of its main metric on the ``ids`` that all runs share.

    ``records[j]`` are run j's records of these ids, in order; ``notes`` say what does not fit.
    ``aggregated``: the items' values of each run where the metric is no mean over items; ``scores`` are NaN
    for those that are no numbers. ``untestable``: why they cannot be tested as means, if they cannot.
    """

    task: str
    domain: str
    dataset: str
    metric: str
    ids: tuple[int, ...]
    scores: NDArray[np.float64]
    records: tuple[tuple[Record, ...], ...]
    notes: tuple[str, ...] = field(default=())
    measure: Measure = USUAL
    aggregated: tuple[list[Any], ...] | None = None
    untestable: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        """Task, domain, dataset."""
        return self.task, self.domain, self.dataset


def paired_tasks(
    runs: Sequence[RunView], form: str, *, allow_mixed: bool, means: bool = True
) -> Iterator[TaskScores]:
    """Yield the tasks of ``form`` that all runs have, read from their records, one at a time.

    UsageError if item sets or gold answers differ, unless ``allow_mixed``: then pairs are formed on the
    shared ids, with a note. NoItemMeanError for a metric that is no mean over items, if only ``means`` are
    wanted.
    """
    shared = [task for task in runs[0].tasks(form) if all(task in run.results.tasks for run in runs)]
    for task in shared:
        yield _paired_task(runs, task, allow_mixed, means)


def _paired_task(runs: Sequence[RunView], task: str, allow_mixed: bool, means: bool) -> TaskScores:
    result = runs[0].results.tasks[task]
    metric = result.primary
    by_id: list[dict[int, Record]] = [
        {r.id: r for r in current_records(run.folder, task, run.run.tasks[task])} for run in runs
    ]
    ids = sorted(set.intersection(*(set(records) for records in by_id)))
    notes = []
    if left_out := len(set.union(*(set(records) for records in by_id))) - len(ids):
        notes.append(f"sample ids differ in {task}: {left_out} items are not in all runs")
    rows = [tuple(records[i] for i in ids) for records in by_id]
    if odd := sum(not same_gold(same) for same in zip(*rows, strict=True)):
        notes.append(f"gold answers differ in {task}: {odd} items")
    if notes and not allow_mixed:
        raise UsageError(f"the runs cannot be paired: {'; '.join(notes)} ({ALLOW})")
    if not ids:
        raise UsageError(f"{task}: the runs share no item")
    values = [[record.scores.get(metric) for record in records] for records in rows]
    measure = result.metrics[metric].measure
    numbers = all(isinstance(v, int | float) for column in values for v in column)
    untestable = _untestable(result.metrics[metric], metric, values)
    if measure.aggregation != "mean" and any(_averaged(run, task) for run in runs):
        untestable = f"{metric} of several answers to an item is no mean over items"
        measure = replace(measure, aggregation="!function unknown")
    if means and not (numbers and measure.aggregation == "mean"):
        raise NoItemMeanError(f"{task}: {untestable}; it cannot be tested item by item")
    plain = [[v if isinstance(v, int | float) else np.nan for v in column] for column in values]
    if not numbers and measure.aggregation == "mean":  # an earlier version wrote no aggregation
        measure = replace(measure, aggregation="f1_macro" if metric == "f1_macro" else "!function unknown")
    return TaskScores(
        task=task,
        domain=result.domain,
        dataset=result.dataset,
        metric=metric,
        ids=tuple(ids),
        scores=np.array(plain, dtype=float).T,
        records=tuple(rows),
        notes=tuple(notes),
        measure=measure,
        aggregated=None if measure.aggregation == "mean" else tuple(values),
        untestable=untestable,
    )


def _averaged(run: RunView, task: str) -> bool:
    """Return whether a run's scores of items are means over their answers."""
    planned = run.run.tasks[task]
    return planned.repeats > 1 and not planned.combined


def _untestable(record: MetricRecord, metric: str, values: Sequence[Sequence[Any]]) -> str:
    """Return why items of a metric cannot be paired, where they cannot."""
    missing = sum(value is None for column in values for value in column)
    if missing and record.aggregation == "mean":
        return f"{missing} item{'s have' if missing > 1 else ' has'} no number for {metric}"
    return f"{metric} is no mean over items"


def weights(tasks: Sequence[tuple[str, str, str]], *, averaged: bool = True) -> dict[str, dict[str, float]]:
    """Return, for every domain and for the average, the weight of each of its tasks (task, domain, dataset).

    A dataset is the mean of its tasks, a domain of its datasets, the average of the domains. If they
    are not ``averaged``, every task stands by itself.
    """
    if not averaged:
        return {task: {task: 1.0} for task, _, _ in tasks}
    in_dataset = Counter((domain, dataset) for _, domain, dataset in tasks)
    datasets = Counter(domain for domain, _ in in_dataset)
    by_domain: dict[str, dict[str, float]] = {domain: {} for domain in datasets}
    for task, domain, dataset in tasks:
        by_domain[domain][task] = 1 / (in_dataset[domain, dataset] * datasets[domain])
    average = {task: w / len(by_domain) for own in by_domain.values() for task, w in own.items()}
    return by_domain | {AVERAGE: average}


def answer_of(record: Record) -> str:
    """Return the model's answer as text: the extracted answer, the most likely choice, or its text. A choice
    has its number where choices differ in their prompts only."""
    if record.answer is not None:
        return record.answer.text
    response, logprobs = record.response, record.response.logprobs
    if response.text is not None:
        return response.text
    assert logprobs
    if len(logprobs) == 1:
        return f"{logprobs[0]:.3f}"
    chosen, choices = int(np.argmax(logprobs)), record.choices
    text = choices[chosen].strip()
    return text if len(set(choices)) == len(choices) else f"{chosen + 1}: {text}"
