"""Several seeds of one method on the same items: seeds as a random effect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cme_bench.stats.estimates import Estimate
from cme_bench.stats.intervals import satterthwaite, student


@dataclass(frozen=True, slots=True)
class SeedsMean:
    """``estimate`` generalises over seeds and items; ``seed_sd``: standard deviation of a seed's true score
    around the method's; ``df``: degrees of freedom of the standard error."""

    estimate: Estimate
    seed_sd: float
    df: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval of the method's mean."""
        return student(self.estimate, self.df, level)


def seeds_mean(tasks: Sequence[ArrayLike], weights: Sequence[float] = (1.0,)) -> SeedsMean:
    """The weighted sum of task means; each task holds scores [S seeds, its n items], the same seeds in all.

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


def seeds_difference(a: ArrayLike, b: ArrayLike) -> SeedsMean:
    """Mean of b less mean of a, each [its own number of seeds, the same n items].

    The item part is that of the differences of item means (pairing); the seed parts of both add up.
    ``seed_sd``: the root of their summed variances. NaN with a single seed on either side.
    """
    x, y = _table(a), _table(b)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"scores of shapes {x.shape} and {y.shape}: [seeds, items], the same items")
    first, second = seeds_mean([x]), seeds_mean([y])
    d = y.mean(axis=0) - x.mean(axis=0)
    parts = [first.seed_sd**2 / len(x), second.seed_sd**2 / len(y), float(d.var(ddof=1)) / d.size]
    df = satterthwaite(parts, [len(x) - 1, len(y) - 1, d.size - 1])
    value = Estimate(float(d.mean()), math.sqrt(sum(parts)), d.size)
    return SeedsMean(value, math.hypot(first.seed_sd, second.seed_sd), df)


def _table(scores: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(scores, dtype=float)
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"scores of shape {x.shape}: [seeds, items] with two items or more are needed")
    return x


def _mean_squares(x: NDArray[np.float64]) -> tuple[float, float]:
    """MS of items and of the rest in a two-way table without repeats, [seeds, items]."""
    seeds, n = x.shape
    rest = x - x.mean(axis=1, keepdims=True) - x.mean(axis=0, keepdims=True) + x.mean()
    return seeds * float(x.mean(axis=0).var(ddof=1)), float(np.sum(rest**2)) / ((seeds - 1) * (n - 1))
