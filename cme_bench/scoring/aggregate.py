"""From item scores to a task's results, and from tasks to datasets, domains and the CME average."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cme_bench.scoring.bootstrap import bootstrap_stderr
from cme_bench.scoring.generation import GENERATE_UNTIL
from cme_bench.scoring.items import origin
from cme_bench.scoring.macro_f1 import f1_macro, f1_macro_stderr
from cme_bench.scoring.record import Record
from cme_bench.scoring.scales import Measure, measure_of
from cme_bench.scoring.ties import NOISE, Decision, decision
from cme_bench.stats.estimates import Estimate, macro_mean, mean

FORMS = {GENERATE_UNTIL: "generated"}
"""Form of a task by its output type; every other output type is a likelihood."""
OUTSIDE = "other "
"""Begins the form of a task that is not one of CME's: CME's averages are over CME's tasks alone."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One finished task. Its form is ``generated`` or ``likelihood``, with ``other`` before it outside CME,
    and the main metric's kind behind it where that is no share.

    ``metrics[name]`` are estimates over its items, ``measures[name]`` say how to read them, ``origins[name]``
    are lm-eval's names of metric and filter, ``primary`` names the one that stands for it. ``quality``
    holds shares in [0, 1]: ``empty`` (no answer found), ``hit_length`` (generation cut by its limit),
    ``truncated`` (prompt cut to fit), ``unanswered`` where items have no response and are not scored, and of
    the questions with choices ``ties`` (the two best are equal) and ``near_ties`` (they differ by less than
    the model's type is exact to, ties included).
    """

    task: str
    form: str
    domain: str
    dataset: str
    primary: str
    metrics: dict[str, Estimate]
    quality: dict[str, float]
    measures: dict[str, Measure] = field(default_factory=dict)
    origins: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def score(self) -> Estimate:
        return self.metrics[self.primary]

    @property
    def measure(self) -> Measure:
        return self.measures.get(self.primary, Measure())


@dataclass(frozen=True, slots=True)
class Summary:
    """Macro means: a dataset over its tasks, a domain over its datasets, the average over the domains.

    Tasks whose metrics have no common mean (perplexities) stand by themselves: ``domains`` and ``datasets``
    are the tasks then, and there is no average.
    """

    datasets: dict[str, Estimate]
    domains: dict[str, Estimate]
    average: Estimate | None
    measure: Measure


def task_result(
    spec: Any, lm_task: Any, records: Iterable[Record], *, dtype: str | None = None
) -> TaskResult:
    """Aggregate the records of one task in one pass; the last record of an item is the one that counts.

    Only numbers are held meanwhile, not the records, so a generator over a file of any size will do. Means
    are ours; other aggregations are lm-eval's, their standard errors its bootstrap (100 resamples). An item
    that has no value of a metric does not count in it. ``dtype`` is the model's: it says which choices are
    nearly tied.
    """
    scores = _Scores()
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


_STORED, _TRUNCATED, _GENERATED, _HIT_LENGTH, _READ, _EMPTY = (1 << bit for bit in range(6))


@dataclass(slots=True)
class _Scores:
    """The counts of every item, at the place of its id: 8 bytes a metric, one of marks, and one for how it
    was decided."""

    marks: bytearray = field(default_factory=bytearray)
    decisions: bytearray = field(default_factory=bytearray)
    numbers: dict[str, array[float]] = field(default_factory=dict)
    others: dict[str, dict[int, Any]] = field(default_factory=dict)  # scores that are no numbers

    @property
    def names(self) -> list[str]:
        return list(self.numbers)

    def add(self, record: Record, decided: Decision) -> None:
        place = record.id
        if place >= len(self.marks):
            self._grow(max(place + 1, 2 * len(self.marks)))
        self.marks[place] = _marks(record)
        self.decisions[place] = decided
        for name in self.numbers.keys() - record.scores.keys():
            self.numbers[name][place] = math.nan  # what an earlier record of the item said
            self.others.get(name, {}).pop(place, None)
        for name, value in record.scores.items():
            if name not in self.numbers:
                self.numbers[name] = array("d", [math.nan]) * len(self.marks)
            if isinstance(value, float | int):
                self.numbers[name][place] = value
                if name in self.others:
                    self.others[name].pop(place, None)
            else:
                self.numbers[name][place] = math.nan
                self.others.setdefault(name, {})[place] = value

    def _grow(self, size: int) -> None:
        more = size - len(self.marks)
        self.marks.extend(bytes(more))
        self.decisions.extend(bytes(more))
        for column in self.numbers.values():
            column.extend(array("d", [math.nan]) * more)

    def values(self, name: str) -> Any:
        """Return the values of items that have one, by ascending id: an array of numbers, or a list if some
        are none.

        A number that is not one (NaN, stored as null) is NaN in the array.
        """
        found = np.frombuffer(self.numbers[name])
        others = self.others.get(name) or {}
        places = sorted({*np.flatnonzero(~np.isnan(found)).tolist(), *others})
        if all(value is None for value in others.values()):
            return found[places]
        return [others[place] if place in others else float(found[place]) for place in places]

    def quality(self) -> dict[str, float]:
        """Return the shares as :class:`TaskResult` has them."""
        marks = np.frombuffer(self.marks, np.uint8)

        def count(mark: int) -> int:
            return int(np.count_nonzero(marks & mark))

        quality = {"truncated": count(_TRUNCATED) / count(_STORED)}
        if generated := count(_GENERATED):
            quality["hit_length"] = count(_HIT_LENGTH) / generated
        if read := count(_READ):
            quality["empty"] = count(_EMPTY) / read
        decisions = np.frombuffer(self.decisions, np.uint8)
        if decided := int(np.count_nonzero(decisions)):
            quality["ties"] = int(np.count_nonzero(decisions == Decision.TIE)) / decided
            quality["near_ties"] = int(np.count_nonzero(decisions >= Decision.NEAR)) / decided
        return quality


def _marks(record: Record) -> int:
    marks = _STORED | (_TRUNCATED if record.truncated > 0 else 0)
    finish = record.response.finish
    if finish is not None:
        marks |= _GENERATED | (_HIT_LENGTH if finish == "length" else 0)
    if record.answer is not None:
        marks |= _READ | (_EMPTY if record.answer.empty else 0)
    return marks


def _estimate(lm_task: Any, metric: str, scores: _Scores, name: str) -> tuple[Estimate, str]:
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


def aggregation_name(aggregate: Any) -> str:
    """Return lm-eval's name of an aggregation, or ``!function NAME`` for a task's own code."""
    from lm_eval.api.registry import aggregation_registry

    for name in aggregation_registry:
        if aggregation_registry.get(name) is aggregate:
            return str(name)
    return f"!function {getattr(aggregate, '__name__', 'unnamed')}"


def _higher(lm_task: Any, metric: str) -> bool | None:
    directions = lm_task.higher_is_better() if hasattr(lm_task, "higher_is_better") else {}
    found = directions.get(metric)
    return found if isinstance(found, bool) else None


def summarize(results: Sequence[TaskResult]) -> dict[str, Summary]:
    """Return a summary for each form that occurs. Generated answers and likelihoods are never averaged
    together, nor CME's tasks with others."""
    forms = dict.fromkeys(r.form for r in results)
    return {form: _summarize([r for r in results if r.form == form]) for form in forms}


def _summarize(results: Sequence[TaskResult]) -> Summary:
    measure = results[0].measure
    if not measure.scale.averaged:
        tasks = {result.task: result.score for result in results}
        return Summary(datasets=tasks, domains=dict(tasks), average=None, measure=measure)
    by_dataset: dict[tuple[str, str], list[Estimate]] = {}
    for result in results:
        by_dataset.setdefault((result.domain, result.dataset), []).append(result.score)
    datasets = {key: macro_mean(parts) for key, parts in by_dataset.items()}
    by_domain: dict[str, list[Estimate]] = {}
    for (domain, _), estimate in datasets.items():
        by_domain.setdefault(domain, []).append(estimate)
    domains = {domain: macro_mean(parts) for domain, parts in by_domain.items()}
    return Summary(
        datasets={dataset: estimate for (_, dataset), estimate in datasets.items()},
        domains=domains,
        average=macro_mean(list(domains.values())),
        measure=measure,
    )
