"""From the records of a task's items to its results, by the aggregations of lm-eval's task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cme_bench.harness.aggregations import aggregation_name
from cme_bench.harness.bootstrap import bootstrap_stderr
from cme_bench.scoring.aggregate import BLIND, FORMS, OUTSIDE, TaskResult
from cme_bench.scoring.columns import ScoreColumns
from cme_bench.scoring.items import origin
from cme_bench.scoring.macro_f1 import f1_macro, f1_macro_stderr
from cme_bench.scoring.record import Record
from cme_bench.scoring.repeats import RepeatColumns
from cme_bench.scoring.scales import Measure, measure_of
from cme_bench.scoring.thoughts import ThoughtCounts
from cme_bench.scoring.ties import NOISE, decision
from cme_bench.stats.estimates import Estimate, mean


def task_result(
    spec: Any, lm_task: Any, records: Iterable[Record], *, dtype: str | None = None, repeats: int = 1
) -> TaskResult:
    """Aggregate the records of one task in one pass; the last record of an item is the one that counts.

    Only numbers are held meanwhile, not the records, so a generator over a file of any size will do. Means
    are ours; other aggregations are lm-eval's, their standard errors its bootstrap (100 resamples). An item
    that has no value of a metric does not count in it. ``dtype`` is the model's: it says which choices are
    nearly tied. With several answers to each item a metric is the mean over items of the mean over their
    answers, and an item is one draw; pass@k and maj@n of the main metric are added.
    """
    thoughts = ThoughtCounts()
    if repeats > 1:
        return _repeated_result(spec, lm_task, thoughts.counted(records), thoughts, repeats)
    scores = ScoreColumns()
    noise = NOISE.get(dtype or "")
    for record in thoughts.counted(records):
        scores.add(record, decision(lm_task, record, spec.primary, noise))
    return _result(spec, lm_task, scores, thoughts)


def _result(spec: Any, lm_task: Any, scores: ScoreColumns, thoughts: ThoughtCounts) -> TaskResult:
    origins = {name: origin(lm_task, name) for name in scores.names}
    metrics: dict[str, Estimate] = {}
    measures: dict[str, Measure] = {}
    for name, (metric, _) in origins.items():
        metrics[name], aggregation = _estimate(lm_task, metric, scores, name)
        numbers = () if scores.others.get(name) else scores.values(name)
        measures[name] = measure_of(
            metric,
            aggregation,
            higher=None if lm_task is None else _higher(lm_task, metric),
            declared=getattr(spec, "metadata", {}).get("scales", {}).get(metric),
            values=(metrics[name].value, *numbers),
        )
    primary = spec.primary if spec.primary in metrics else next(iter(metrics))
    blind = BLIND if getattr(spec, "metadata", {}).get("blind") else ""
    form = ("" if spec.in_cme else OUTSIDE + blind) + FORMS.get(spec.output_type, "likelihood")
    kind = measures[primary].kind
    return TaskResult(
        task=spec.name,
        form=f"{form}, {kind}" if kind else form,
        domain=spec.domain,
        dataset=spec.dataset,
        primary=primary,
        metrics=metrics,
        quality=scores.quality() | thoughts.quality(),
        measures=measures,
        origins=origins,
        thinking=thoughts.summary(),
    )


def _repeated_result(
    spec: Any, lm_task: Any, records: Iterable[Record], thoughts: ThoughtCounts, repeats: int
) -> TaskResult:
    """Return the result of several answers to each item."""
    kind = (getattr(lm_task, "answer", None) or {}).get("type")
    columns = RepeatColumns(spec.primary, kind, origin(lm_task, spec.primary)[1], repeats)
    for record in records:
        columns.add(record)
    if columns.combined.names:
        result = _result(spec, lm_task, columns.combined, thoughts)
        return replace(result, quality=columns.quality() | thoughts.quality())
    alone = [_result(spec, lm_task, each, thoughts) for each in columns.columns if each.names]
    first = alone[0]
    metrics = {name: _over_repeats(name, columns, alone) for name in columns.names}
    measures = dict(first.measures)
    primary = first.primary
    added = columns.passes()
    if columns.votes:
        added |= {f"maj@{repeats}": columns.majorities()}
    for name, values in added.items():
        metrics[name], measures[name] = mean(values), measures[primary]
    return replace(first, metrics=metrics, measures=measures, quality=columns.quality() | thoughts.quality())


def _over_repeats(name: str, columns: RepeatColumns, alone: Sequence[TaskResult]) -> Estimate:
    """Return a metric over items and answers, an item being one draw.

    An aggregation that is no mean is taken of each repeat; their mean has the mean of their standard errors,
    which is too large rather than too small: it holds if an item is right always or never.
    """
    parts = [(result.metrics[name], result.measures[name]) for result in alone if name in result.metrics]
    if all(measure.aggregation == "mean" for _, measure in parts):
        return mean(columns.item_means(name))
    estimates = [estimate for estimate, _ in parts]
    value = sum(estimate.value for estimate in estimates) / len(estimates)
    stderr = sum(estimate.stderr for estimate in estimates) / len(estimates)
    return Estimate(value, stderr, max(estimate.n for estimate in estimates))


def _estimate(lm_task: Any, metric: str, scores: ScoreColumns, name: str) -> tuple[Estimate, str]:
    """Return the estimate of a metric, and lm-eval's name of its aggregation; the mean where a task names
    none."""
    values = scores.values(name)
    aggregate = None if lm_task is None else lm_task.aggregation().get(metric)
    if metric == "f1_macro":
        return Estimate(f1_macro(values), f1_macro_stderr(values), len(values)), metric
    aggregation = "mean" if aggregate is None else aggregation_name(aggregate)
    if aggregate is None or aggregation == "mean":
        return mean(values), aggregation
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    value = float(aggregate(plain))
    return Estimate(value, bootstrap_stderr(aggregation, aggregate, plain), len(plain)), aggregation


def _higher(lm_task: Any, metric: str) -> bool | None:
    directions = lm_task.higher_is_better() if hasattr(lm_task, "higher_is_better") else {}
    found = directions.get(metric)
    return found if isinstance(found, bool) else None
