"""The difference of two rows' averages, paired by item, over seeds where both have several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cme_bench.experiments.reproduce.verdicts import Interval
from cme_bench.experiments.reproduce.views import RowRuns
from cme_bench.reports.compare import compare_runs
from cme_bench.reports.scores import AVERAGE, paired_tasks, weights
from cme_bench.stats.estimates import Estimate
from cme_bench.stats.intervals import student
from cme_bench.stats.power import detectable
from cme_bench.stats.seed_planning import CentredScores, Floats, Spread, paired_spread, pooled_spread
from cme_bench.stats.seeds import seeds_difference, seeds_mean

USUAL_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Contrast:
    """The average of ``b`` less that of ``a`` in one form, in points, with standard error and p value.

    interval: at level ``1 - level``, and the inner one of two one-sided tests. mde: the smallest true
    difference that would have been found with 80 % power at ``level``. spread: of the two rows, in points
    squared, where both have several seeds.
    """

    a: str
    b: str
    form: str
    value: float
    stderr: float
    low: float
    high: float
    inner_low: float
    inner_high: float
    level: float
    p: float
    mde: float
    n: int
    test: str
    spread: Spread | None = None

    @property
    def interval(self) -> Interval:
        return Interval(self.low, self.high, self.inner_low, self.inner_high)


@dataclass(frozen=True, slots=True)
class Found:
    """A difference in shares, before intervals: ``outer`` is the 95 % interval of a test that has its own."""

    estimate: Estimate
    df: float
    p: float
    test: str
    outer: tuple[float, float] | None = None
    spread: Spread | None = None

    def contrast(self, a: str, b: str, form: str, level: float = USUAL_LEVEL) -> Contrast:
        """Return the contrast of rows with these titles, its intervals at ``level``."""
        estimate = self.estimate
        alone = estimate.value, estimate.value
        outer = student(estimate, self.df, 1 - level) if estimate.stderr else alone
        inner = student(estimate, self.df, 1 - 2 * level) if estimate.stderr else alone
        if self.outer is not None and level == USUAL_LEVEL:
            outer = self.outer
        low, high, inner_low, inner_high = (100 * v for v in (*outer, *inner))
        return Contrast(
            a=a,
            b=b,
            form=form,
            value=100 * estimate.value,
            stderr=100 * estimate.stderr,
            low=low,
            high=high,
            inner_low=inner_low,
            inner_high=inner_high,
            level=level,
            p=self.p,
            mde=100 * detectable(estimate.stderr, level=level),
            n=estimate.n,
            test=self.test,
            spread=self.spread,
        )


def contrast(
    a: RowRuns, b: RowRuns, form: str, *, level: float = USUAL_LEVEL, paired: bool = False
) -> Contrast:
    """Return b less a. With one seed on either side only items are random: then it speaks of these
    adapters. ``paired``: seed by seed, over those that both have."""
    if min(len(a.seeds), len(b.seeds)) < 2:
        found = _over_items(a, b, form)
    else:
        (first, second), shares = row_scores([a, b], form)
        found = (over_pairs if paired else over_seeds)(first, second, shares)
    return found.contrast(a.title, b.title, form, level)


def _over_items(a: RowRuns, b: RowRuns, form: str) -> Found:
    comparison = {c.form: c for c in compare_runs(a.seeds[0], b.seeds[0])}[form].average
    assert comparison is not None  # CME's forms have a mean
    d = comparison.difference
    test = f"{comparison.test} over items, one seed each"
    return Found(Estimate(d.value, d.stderr, d.n), max(d.df, 1.0), comparison.p, test, (d.low, d.high))


def over_seeds(first: Sequence[Floats], second: Sequence[Floats], shares: Sequence[float]) -> Found:
    """Return the second row's average less the first's, from the scores of each task [seeds, items]."""
    pooled = seeds_difference(first, second, shares)
    spread = pooled_spread([CentredScores(first), CentredScores(second)], shares)
    test = f"t test over {len(first[0])} and {len(second[0])} seeds and items"
    return Found(pooled.estimate, pooled.df, pooled.pvalue(), test, spread=in_points(spread))


def over_pairs(first: Sequence[Floats], second: Sequence[Floats], shares: Sequence[float]) -> Found:
    """Return the second row's average less the first's, seed by seed: the same seed has the same training
    rows in the same order, and what it does to both rows falls out."""
    differences = seed_differences(first, second)
    pooled = seeds_mean(differences, shares)
    spread = paired_spread([CentredScores(differences)], shares)
    test = f"t test over {len(differences[0])} pairs of seeds and items"
    return Found(pooled.estimate, pooled.df, pooled.pvalue(), test, spread=in_points(spread))


def seed_differences(first: Sequence[Floats], second: Sequence[Floats]) -> list[Floats]:
    """Return the second row's scores less the first's of each task, over the seeds that both have."""
    seeds = min(len(first[0]), len(second[0]))
    return [b[:seeds] - a[:seeds] for a, b in zip(first, second, strict=True)]


def row_scores(rows: Sequence[RowRuns], form: str) -> tuple[list[list[Floats]], list[float]]:
    """Return, for each row, the scores of each task [seeds, items], the same items in all; and the tasks'
    weights in the average."""
    views = [view for row in rows for view in row.seeds]
    tasks = list(paired_tasks(views, form, allow_mixed=False))
    weight = weights([task.place for task in tasks])[AVERAGE]
    ends = np.cumsum([len(row.seeds) for row in rows])[:-1]
    found: list[list[Floats]] = [[] for _ in rows]
    for task in tasks:
        for own, scores in zip(found, np.split(task.scores, ends, axis=1), strict=True):
            own.append(scores.T)
    return found, [weight[task.task] for task in tasks]


def in_points(spread: Spread) -> Spread:
    """Return a spread of shares in points squared."""
    return replace(
        spread,
        between=1e4 * spread.between,
        residual=1e4 * spread.residual,
        interaction=1e4 * spread.interaction,
    )
