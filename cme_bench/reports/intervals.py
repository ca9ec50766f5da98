"""The 95 % intervals that pages draw: of a run's scores, and of what a task scored so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cme_bench.reports.columns import score_of
from cme_bench.reports.runs import RunView
from cme_bench.scoring.scales import SHARE, Scale
from cme_bench.stats.estimates import Estimate, mean
from cme_bench.stats.intervals import student, wilson

BINARY = frozenset(
    "acc em acc_norm acc_char acc_byte acc_bytes acc_token acc_stated acc_mutual_info exact_match".split()
)
"""Metrics of 0/1 items among those that stand for a task."""
Interval = tuple[float, float, float]
"""A score, and the ends of its interval."""


def interval_of(run: RunView, form: str, column: str) -> Interval:
    """Return the score of a column, or of the average, which the run must have.

    Wilson's interval where a domain is a single task of 0/1 items, else ± 1.96 SE and more for few
    items (Student).
    """
    found = estimate_of(run, form, column)
    assert found is not None
    own = {k: t for k, t in run.results.tasks.items() if t.form == form and column in (t.domain, t.dataset)}
    once = all(run.run.tasks[name].repeats == 1 for name in own)
    binary = len(own) == 1 and once and next(iter(own.values())).primary in BINARY
    return bounded(found, run.measure(form).scale, binary=binary)


def estimate_of(run: RunView, form: str, column: str) -> Estimate | None:
    """Return a run's score of one column; None where it has none."""
    found = score_of(run.results.forms[form], column)
    if found is None or found.value is None:
        return None
    return Estimate(found.value, np.nan if found.stderr is None else found.stderr, found.n)


def task_interval(run: RunView, task: str) -> Interval | None:
    """Return the main score of one task; None where it is no finite number."""
    result = run.results.tasks[task]
    score = result.score
    if score.value is None:
        return None
    found = Estimate(score.value, np.nan if score.stderr is None else score.stderr, score.n)
    binary = run.run.tasks[task].repeats == 1 and result.primary in BINARY
    return bounded(found, score.measure.scale, binary=binary)


def share_so_far(values: Sequence[float], *, binary: bool) -> Interval:
    """Return the mean of items' values between 0 and 1; there is at least one."""
    return bounded(mean(values), SHARE, binary=binary)


def bounded(found: Estimate, scale: Scale, *, binary: bool) -> Interval:
    """Return an estimate with its interval, cut where the scale ends; of no width without a standard
    error."""
    right = found.value * found.n
    if binary and 0 <= found.value <= 1 and found.n > 0 and abs(right - round(right)) < 1e-6 * found.n:
        low, high = (float(x) for x in wilson(right, found.n))
    else:
        low, high = student(found, max(found.n - 1, 1))
        low, high = (float(x) for x in np.nan_to_num([low, high], nan=found.value))
    return found.value, max(low, scale.low), min(high, scale.high)
