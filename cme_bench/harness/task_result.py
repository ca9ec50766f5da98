"""From the records of a task's items to its results, by the aggregations of lm-eval's task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from cme_bench.harness.aggregations import aggregation_name
from cme_bench.harness.bootstrap import bootstrap_stderr
from cme_bench.scoring.aggregate import FORMS, OUTSIDE, TaskResult
from cme_bench.scoring.columns import ScoreColumns
from cme_bench.scoring.items import origin
from cme_bench.scoring.macro_f1 import f1_macro, f1_macro_stderr
from cme_bench.scoring.record import Record
from cme_bench.scoring.scales import Measure, measure_of
from cme_bench.scoring.ties import NOISE, decision
from cme_bench.stats.estimates import Estimate, mean


def task_result(
    spec: Any, lm_task: Any, records: Iterable[Record], *, dtype: str | None = None
) -> TaskResult:
    """Aggregate the records of one task in one pass; the last record of an item is the one that counts.

    Only numbers are held meanwhile, not the records, so a generator over a file of any size will do. Means
    are ours; other aggregations are lm-eval's, their standard errors its bootstrap (100 resamples). An item
    that has no value of a metric does not count in it. ``dtype`` is the model's: it says which choices are
    nearly tied.
    """
    scores = ScoreColumns()
    noise = NOISE.get(dtype or "")
    for record in records:
        scores.add(record, decision(lm_task, record, spec.primary, noise))
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
    form = ("" if spec.in_cme else OUTSIDE) + FORMS.get(spec.output_type, "likelihood")
    kind = measures[primary].kind
    return TaskResult(
        task=spec.name,
        form=f"{form}, {kind}" if kind else form,
        domain=spec.domain,
        dataset=spec.dataset,
        primary=primary,
        metrics=metrics,
        quality=scores.quality(),
        measures=measures,
        origins=origins,
    )


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
