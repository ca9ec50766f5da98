"""The difference of two rows' averages, paired by item, over seeds where both have several."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from cme_bench.experiments.reproduce.views import RowRuns
from cme_bench.reports.compare import compare_runs
from cme_bench.reports.scores import AVERAGE, paired_tasks, weights
from cme_bench.stats.power import detectable
from cme_bench.stats.seeds import seeds_difference


@dataclass(frozen=True, slots=True)
class Contrast:
    """The average of ``b`` less that of ``a`` in one form, in points, with standard error, 95 % interval and
    p value. ``mde``: the smallest true difference that would have been found with 80 % power."""

    a: str
    b: str
    form: str
    value: float
    stderr: float
    low: float
    high: float
    p: float
    mde: float
    n: int
    test: str

    def within(self, margin: float) -> bool:
        """Return whether the whole interval lies between -margin and +margin points."""
        return -margin < self.low and self.high < margin


def contrast(a: RowRuns, b: RowRuns, form: str) -> Contrast:
    """Return b less a. With one seed on either side only items are random: then it speaks of these
    adapters."""
    if min(len(a.seeds), len(b.seeds)) < 2:
        comparison = {c.form: c for c in compare_runs(a.seeds[0], b.seeds[0])}[form].average
        assert comparison is not None  # CME's forms have a mean
        d = comparison.difference
        values, p, n = (d.value, d.stderr, d.low, d.high), comparison.p, d.n
        test = f"{comparison.test} over items, one seed each"
    else:
        tasks = list(paired_tasks([*a.seeds, *b.seeds], form, allow_mixed=False))
        weight = weights([task.place for task in tasks])[AVERAGE]
        sides = [np.split(task.scores, [len(a.seeds)], axis=1) for task in tasks]
        pooled = seeds_difference(
            [first.T for first, _ in sides],
            [second.T for _, second in sides],
            [weight[task.task] for task in tasks],
        )
        e = pooled.estimate
        reach = float(stats.t.isf(0.025, pooled.df)) * e.stderr if e.stderr else 0.0
        values, p, n = (e.value, e.stderr, e.value - reach, e.value + reach), pooled.pvalue(), e.n
        test = f"t test over {len(a.seeds)} and {len(b.seeds)} seeds and items"
    value, stderr, low, high = (100 * v for v in values)
    return Contrast(a.title, b.title, form, value, stderr, low, high, p, detectable(stderr), n, test)
