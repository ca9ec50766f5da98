"""Two runs, item by item: difference, interval, test and power, by domain and by task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cme_bench.reports.aggregated import resampled_difference
from cme_bench.reports.runs import RunView, check_alike, labels, provenance_notes, watermarks
from cme_bench.reports.scores import (
    AVERAGE,
    NoItemMeanError,
    TaskScores,
    answer_of,
    paired_tasks,
    weights,
)
from cme_bench.scoring.scales import USUAL, Measure
from cme_bench.stats.intervals import cluster_sums, is_binary
from cme_bench.stats.multiple import holm
from cme_bench.stats.paired import Difference, macro_difference, mcnemar, paired_difference
from cme_bench.stats.power import detectable
from cme_bench.stats.resampling import RESAMPLES, permutation_pvalues, sign_flips
from cme_bench.util.errors import UsageError

_OWN_CODE = "its aggregation is code of the task file, so it cannot be tested"


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """A task, a domain or the average.

    ``a``, ``b``: mean scores; ``adjusted``: ``p`` after Holm over the rows of its kind (the average stands
    alone); ``test``: how p was found; ``detectable``: minimum detectable effect at 80 % power.
    """

    name: str
    metric: str
    a: float
    b: float
    difference: Difference
    p: float
    adjusted: float
    test: str
    detectable: float


@dataclass(frozen=True, slots=True)
class Flip:
    """An item on which the two runs score differently; ``gain``: how much better b is."""

    task: str
    id: int
    target: str
    score_a: float
    score_b: float
    gain: float
    answer_a: str
    answer_b: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs ``a`` and ``b`` (their names) in one form. ``flips`` are in the order of tasks and ids.

    ``average`` is None where scores of this ``measure`` have no mean."""

    form: str
    a: str
    b: str
    domains: tuple[ComparisonRow, ...]
    tasks: tuple[ComparisonRow, ...]
    average: ComparisonRow | None
    flips: tuple[Flip, ...]
    notes: tuple[str, ...]
    measure: Measure = USUAL


def compare_runs(
    a: RunView,
    b: RunView,
    *,
    allow_mixed: bool = False,
    cluster: str | None = None,
    mid_p: bool = False,
    resamples: int = RESAMPLES,
) -> list[Comparison]:
    """Return a comparison for each form that both runs have.

    ``cluster`` names a field of the items (a passage, a title): items that share its value are one draw, in
    the tasks whose items have it. ``mid_p`` takes McNemar's mid-p values instead of exact ones. Raises
    UsageError if the runs differ in engine, dtype, quantisation, data, tasks, item ids, formats or task
    versions, unless ``allow_mixed``; then each difference is a note.
    """
    mixed = check_alike([a, b], allow_mixed=allow_mixed)
    forms = [form for form in a.results.forms if form in b.results.forms]
    if not forms:
        raise UsageError(f"{a.folder} and {b.folder} share no task")
    found: list[Comparison] = []
    left_out: list[NoItemMeanError] = []
    for form in forms:
        try:
            found.append(
                _compare(
                    a,
                    b,
                    form,
                    mixed,
                    allow_mixed=allow_mixed,
                    cluster=cluster,
                    mid_p=mid_p,
                    resamples=resamples,
                )
            )
        except NoItemMeanError as err:  # all of this form's tasks
            left_out.append(err)
    if not found:
        raise left_out[0]
    notes = tuple(f"LEFT OUT: {err}" for err in left_out)
    return [replace(found[0], notes=(*found[0].notes, *notes)), *found[1:]]


@dataclass(frozen=True, slots=True)
class _Paired:
    """One task, compared; ``flips`` [R]: its mean difference under random signs."""

    place: tuple[str, str, str]
    row: ComparisonRow
    flips: NDArray[np.float64]


def _compare(
    a: RunView,
    b: RunView,
    form: str,
    mixed: Sequence[str],
    *,
    allow_mixed: bool,
    cluster: str | None,
    mid_p: bool,
    resamples: int,
) -> Comparison:
    measure = a.measure(form)
    paired: dict[str, _Paired] = {}
    flips: list[Flip] = []
    notes: list[str] = []
    clustered = []
    left_out = []
    pairs = paired_tasks([a, b], form, allow_mixed=allow_mixed, means=False)
    for number, scores in enumerate(pairs):
        notes += scores.notes
        if scores.aggregated is None:
            groups = _groups(scores, cluster)
            if groups is not None:
                clustered.append(scores.task)
            paired[scores.task] = _task(scores, groups, mid_p=mid_p, resamples=resamples, seed=number)
            flips += _flips(scores)
        elif found := _aggregated(scores, seed=number):
            paired[scores.task] = found
        else:
            left_out.append(scores)
    if not paired:
        [first, *_] = left_out
        raise NoItemMeanError(f"{first.task}: {first.untestable}; {_why(first)}")
    if cluster is not None and not clustered:
        raise UsageError(f"--cluster {cluster}: no task has this field in its items")
    columns = weights([p.place for p in paired.values()], averaged=measure.scale.averaged)
    average = _macro(AVERAGE, columns.pop(AVERAGE), paired) if AVERAGE in columns else None
    names = labels([a, b])
    return Comparison(
        form=form,
        a=names[0],
        b=names[1],
        domains=_adjust([_macro(domain, own, paired) for domain, own in columns.items()]),
        tasks=_adjust([p.row for p in paired.values()]),
        average=average,
        flips=tuple(flips),
        notes=(
            *watermarks([a, b]),
            *(f"MIXED: {difference}" for difference in [*mixed, *notes]),
            *([f"clustered by {cluster}: {', '.join(clustered)}"] if clustered else []),
            *(f"LEFT OUT: {s.task}: {s.untestable}; {_why(s)}" for s in left_out),
            *provenance_notes([a, b], names),
        ),
        measure=measure,
    )


def _why(scores: TaskScores) -> str:
    """Return why a task is left out of a comparison."""
    own = scores.measure.aggregation != "!function unknown"
    return _OWN_CODE if own else "it cannot be tested"


def _groups(scores: TaskScores, field: str | None) -> list[str] | None:
    """Return the cluster of each item; None if no clusters are wanted or the items have no such field."""
    if field is None or not all(field in record.doc for record in scores.records[0]):
        return None
    return [str(record.doc[field]) for record in scores.records[0]]


def _task(scores: TaskScores, groups: list[str] | None, *, mid_p: bool, resamples: int, seed: int) -> _Paired:
    x, y = scores.scores.T
    difference = paired_difference(x, y, clusters=groups)
    first, second = sign_flips(_pooled(scores.scores, groups), resamples=resamples, seed=seed).T
    flips = second - first
    if scores.measure.better == "lower":  # b wins an item on which it has less
        difference = replace(difference, wins=difference.losses, losses=difference.wins)
    if groups is None and is_binary(x) and is_binary(y):
        test = "McNemar, mid-p" if mid_p else "McNemar, exact"
        p = float(mcnemar(difference.wins, difference.losses, mid=mid_p))
    else:
        test = "permutation"
        p = _permutation(difference, flips)
    row = ComparisonRow(
        name=scores.task,
        metric=scores.metric,
        a=float(x.mean()),
        b=float(y.mean()),
        difference=difference,
        p=p,
        adjusted=p,
        test=test,
        detectable=detectable(difference.stderr),
    )
    return _Paired(scores.place, row, flips)


def _aggregated(scores: TaskScores, *, seed: int) -> _Paired | None:
    """Return a task whose metric is computed over all items at once; None if it is the task's own code."""
    assert scores.aggregated is not None
    found = resampled_difference(scores.measure.aggregation, *scores.aggregated, seed=seed)
    if found is None:
        return None
    p = _permutation(found.difference, found.flips)
    row = ComparisonRow(
        name=scores.task,
        metric=scores.metric,
        a=found.a,
        b=found.b,
        difference=found.difference,
        p=p,
        adjusted=p,
        test=f"permutation ({len(found.flips)})",
        detectable=detectable(found.difference.stderr),
    )
    return _Paired(scores.place, row, found.flips)


def _permutation(difference: Difference, flips: NDArray[np.float64]) -> float:
    null = np.column_stack([np.zeros_like(flips), flips])
    return float(permutation_pvalues([0.0, difference.value], null)[0, 1])


def _pooled(scores: NDArray[np.float64], groups: list[str] | None) -> NDArray[np.float64]:
    """Return scores [n, 2], or sums by cluster scaled so that their mean is the items' mean."""
    if groups is None:
        return scores
    sums = np.column_stack([cluster_sums(column, groups) for column in scores.T])
    return np.asarray(sums * (len(sums) / len(scores)))


def _macro(name: str, own: dict[str, float], paired: dict[str, _Paired]) -> ComparisonRow:
    """Return a domain or the average; a single task keeps its own test."""
    if len(own) == 1:
        return replace(paired[next(iter(own))].row, name=name)
    rows = [(weight, paired[task].row) for task, weight in own.items()]
    difference = macro_difference([(weight, row.difference) for weight, row in rows])
    flips = np.asarray(sum(weight * paired[task].flips for task, weight in own.items()))
    p = _permutation(difference, flips)
    return ComparisonRow(
        name=name,
        metric="macro",
        a=sum(weight * row.a for weight, row in rows),
        b=sum(weight * row.b for weight, row in rows),
        difference=difference,
        p=p,
        adjusted=p,
        test="permutation",
        detectable=detectable(difference.stderr),
    )


def _adjust(rows: Sequence[ComparisonRow]) -> tuple[ComparisonRow, ...]:
    adjusted = holm([row.p for row in rows])
    return tuple(replace(row, adjusted=float(p)) for row, p in zip(rows, adjusted, strict=True))


def _flips(scores: TaskScores) -> Iterator[Flip]:
    for (x, y), first, second in zip(scores.scores, *scores.records, strict=True):
        if x != y:
            yield Flip(
                task=scores.task,
                id=first.id,
                target=first.target,
                score_a=float(x),
                score_b=float(y),
                gain=float(y - x) * (scores.measure.sign or 1),
                answer_a=answer_of(first),
                answer_b=answer_of(second),
            )
