"""From item scores to a task's results, and from tasks to datasets, domains and the CME average."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cme_bench.scoring.macro_f1 import f1_macro, f1_macro_stderr
from cme_bench.scoring.ties import NOISE, Decision, decision
from cme_bench.stats.estimates import Estimate, macro_mean, mean

FORMS = {"generate_until": "generated"}
"""Form of a task by its output type; every other output type is a likelihood."""
OUTSIDE = "other "
"""Begins the form of a task that is not one of CME's: CME's averages are over CME's tasks alone."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One finished task, in one of two forms: ``generated`` or ``likelihood``; ``other generated`` and
    ``other likelihood`` outside CME.

    ``metrics[name]`` are estimates over its items, ``primary`` names the one that stands for it. ``quality``
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

    @property
    def score(self) -> Estimate:
        return self.metrics[self.primary]


@dataclass(frozen=True, slots=True)
class Summary:
    """Macro means: a dataset over its tasks, a domain over its datasets, the average over the domains."""

    datasets: dict[str, Estimate]
    domains: dict[str, Estimate]
    average: Estimate


def task_result(
    spec: Any, lm_task: Any, records: Iterable[Mapping[str, Any]], *, dtype: str | None = None
) -> TaskResult:
    """Aggregate the records of one task in one pass; the last record of an item is the one that counts.

    Only numbers are held meanwhile, not the records, so a generator over a file of any size will do. Means
    are ours; other aggregations are lm-eval's, their standard errors its bootstrap (100 resamples). ``dtype``
    is the model's: it says which choices are nearly tied.
    """
    scores = _Scores()
    noise = NOISE.get(dtype or "")
    for record in records:
        scores.add(record, decision(lm_task, record, spec.primary, noise))
    metrics = {name: _estimate(lm_task, name, scores) for name in scores.names}
    primary = spec.primary if spec.primary in metrics else next(iter(metrics))
    form = ("" if spec.in_cme else OUTSIDE) + FORMS.get(spec.output_type, "likelihood")
    return TaskResult(spec.name, form, spec.domain, spec.dataset, primary, metrics, scores.quality())


_STORED, _TRUNCATED, _GENERATED, _HIT_LENGTH, _READ, _EMPTY = (1 << bit for bit in range(6))


@dataclass(slots=True)
class _Scores:
    """What is counted of every item, at the place of its id: 8 bytes a metric, one of marks, and one for how
    it was decided."""

    marks: bytearray = field(default_factory=bytearray)
    decisions: bytearray = field(default_factory=bytearray)
    numbers: dict[str, array[float]] = field(default_factory=dict)
    others: dict[str, dict[int, Any]] = field(default_factory=dict)  # scores that are no numbers

    @property
    def names(self) -> list[str]:
        return list(self.numbers)

    def add(self, record: Mapping[str, Any], decided: Decision) -> None:
        place = record["id"]
        if place >= len(self.marks):
            self._grow(max(place + 1, 2 * len(self.marks)))
        self.marks[place] = _marks(record)
        self.decisions[place] = decided
        for name, value in record["scores"].items():
            if name not in self.numbers:
                self.numbers[name] = array("d", bytes(8 * len(self.marks)))
            if isinstance(value, float | int):
                self.numbers[name][place] = value
                if name in self.others:
                    self.others[name].pop(place, None)
            else:
                self.others.setdefault(name, {})[place] = value

    def _grow(self, size: int) -> None:
        more = size - len(self.marks)
        self.marks.extend(bytes(more))
        self.decisions.extend(bytes(more))
        for column in self.numbers.values():
            column.frombytes(bytes(8 * more))

    def values(self, name: str) -> Any:
        """By ascending id: an array of numbers, or a list if some scores are none."""
        places = np.flatnonzero(np.frombuffer(self.marks, np.uint8))
        found = np.frombuffer(self.numbers[name])[places]
        if not self.others.get(name):
            return found
        return [
            self.others[name].get(place, value)
            for place, value in zip(places.tolist(), found.tolist(), strict=True)
        ]

    def quality(self) -> dict[str, float]:
        """Shares as :class:`TaskResult` has them."""
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


def _marks(record: Mapping[str, Any]) -> int:
    marks = _STORED | (_TRUNCATED if record["truncated"] > 0 else 0)
    finish = record["response"].get("finish")
    if finish is not None:
        marks |= _GENERATED | (_HIT_LENGTH if finish == "length" else 0)
    if "answer" in record:
        marks |= _READ | (_EMPTY if record["answer"]["rule"] == "none" else 0)
    return marks


def _estimate(lm_task: Any, name: str, scores: _Scores) -> Estimate:
    values = scores.values(name)
    if name == "f1_macro":
        return Estimate(f1_macro(values), f1_macro_stderr(values), len(values))
    if not scores.others.get(name):
        return mean(values)
    from lm_eval.api.metrics import stderr_for_metric

    from cme_bench.scoring.metrics import LM_EVAL_ALIASES

    original = {v: k for k, v in LM_EVAL_ALIASES.items()}
    bare = name.split("@", maxsplit=1)[0]
    aggregate = lm_task.aggregation()[original.get(bare, bare)]
    stderr = stderr_for_metric(aggregate, bootstrap_iters=100)
    return Estimate(
        value=float(aggregate(values)),
        stderr=float(stderr(values)) if stderr is not None else float("nan"),
        n=len(values),
    )


def summarize(results: Sequence[TaskResult]) -> dict[str, Summary]:
    """A summary for each form that occurs: generated answers and likelihoods are never averaged together,
    nor CME's tasks with others."""
    forms = dict.fromkeys(r.form for r in results)
    return {form: _summarize([r for r in results if r.form == form]) for form in forms}


def _summarize(results: Sequence[TaskResult]) -> Summary:
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
    )
