"""Several seeds of one method on the same items: seeds as a random effect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from cme_bench.stats.estimates import Estimate
from cme_bench.stats.intervals import satterthwaite


@dataclass(frozen=True, slots=True)
class SeedsMean:
    """``estimate`` generalises over seeds and items; ``seed_sd``: standard deviation of a seed's true score
    around the method's; ``df``: degrees of freedom of the standard error."""

    estimate: Estimate
    seed_sd: float
    df: float

    def pvalue(self) -> float:
        """Return p of a two-sided t test of a mean of 0; NaN without a standard error, 1 if nothing varies or
        differs."""
        value, stderr = self.estimate.value, self.estimate.stderr
        if stderr == 0:
            return 1.0 if value == 0 else 0.0
        return 2 * float(stats.t.sf(abs(value) / stderr, self.df))


def seeds_mean(tasks: Sequence[ArrayLike], weights: Sequence[float] = (1.0,)) -> SeedsMean:
    """Return the weighted sum of task means; each task holds scores [S seeds, its n items], the same seeds in
    all.

    In a task, x_si = mu + seed_s + item_i + e_si, all random (Searle, Casella and McCulloch 1992, ch. 4); a
    seed's effects on several tasks may go together. With y_s the weighted sum of seed s and the mean squares
    of items and rest of each task's two-way table,

        within = sum_t w_t^2 MS_e,t / n_t              noise of y_s for given items
        seed_sd^2 = max(var(y_s) - within, 0)
        Var(mean) = seed_sd^2 / S + sum_t w_t^2 MS_items,t / (S n_t)

    which for one task is (MS_seeds + MS_items - MS_e) / (S n). Degrees of freedom: Satterthwaite's. One
    seed: its part is unknown and the standard error NaN, not small.
    """
    tables = [_table(scores) for scores in tasks]
    seeds = len(tables[0])
    if any(len(table) != seeds for table in tables):
        raise ValueError(f"tasks with unlike numbers of seeds: {', '.join(str(len(t)) for t in tables)}")
    by_seed = sum(w * table.mean(axis=1) for w, table in zip(weights, tables, strict=True))
    centre, items = float(np.mean(by_seed)), sum(table.shape[1] for table in tables)
    if seeds == 1:
        return SeedsMean(Estimate(centre, math.nan, items), math.nan, 0.0)
    squares = [_mean_squares(table) for table in tables]
    sizes = [table.shape[1] for table in tables]
    within = sum(w**2 * rest / n for w, (_, rest), n in zip(weights, squares, sizes, strict=True))
    between = max(float(np.var(by_seed, ddof=1)) - within, 0.0)
    shared = [w**2 * item / (seeds * n) for w, (item, _), n in zip(weights, squares, sizes, strict=True)]
    df = satterthwaite([between / seeds, *shared], [seeds - 1, *(n - 1 for n in sizes)])
    stderr = math.sqrt(between / seeds + sum(shared))
    return SeedsMean(Estimate(centre, stderr, items), math.sqrt(between), df)


def seeds_difference(
    a: Sequence[ArrayLike], b: Sequence[ArrayLike], weights: Sequence[float] = (1.0,)
) -> SeedsMean:
    """Return :func:`seeds_mean` of b less that of a: the same tasks and items, each side with seeds of its
    own.

    The item part is that of the differences of item means (pairing takes out what items have in common); the
    seed parts of both sides add up. ``seed_sd``: the root of their summed variances. NaN with a single seed
    on either side.
    """
    first, second = seeds_mean(a, weights), seeds_mean(b, weights)
    shapes = [(_table(x).shape, _table(y).shape) for x, y in zip(a, b, strict=True)]
    if any(one[1] != other[1] for one, other in shapes):
        raise ValueError(f"scores of shapes {shapes}: [seeds, items], the same items on both sides")
    differences = [_table(y).mean(axis=0) - _table(x).mean(axis=0) for x, y in zip(a, b, strict=True)]
    seeds = len(_table(a[0])), len(_table(b[0]))
    between = [first.seed_sd**2 / seeds[0], second.seed_sd**2 / seeds[1]]
    shared = [w**2 * float(d.var(ddof=1)) / d.size for w, d in zip(weights, differences, strict=True)]
    df = satterthwaite([*between, *shared], [seeds[0] - 1, seeds[1] - 1, *(d.size - 1 for d in differences)])
    value = second.estimate.value - first.estimate.value
    estimate = Estimate(value, math.sqrt(sum(between) + sum(shared)), sum(d.size for d in differences))
    return SeedsMean(estimate, math.hypot(first.seed_sd, second.seed_sd), df)


def _table(scores: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(scores, dtype=float)
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"scores of shape {x.shape}: [seeds, items] with two items or more are needed")
    return x


def _mean_squares(x: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean squares of items and of the rest in a two-way table without repeats, [seeds, items]."""
    seeds, n = x.shape
    rest = x - x.mean(axis=1, keepdims=True) - x.mean(axis=0, keepdims=True) + x.mean()
    return seeds * float(x.mean(axis=0).var(ddof=1)), float(np.sum(rest**2)) / ((seeds - 1) * (n - 1))
