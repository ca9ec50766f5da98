"""Several seeds of one method on the same items: seeds as a random effect."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

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


def seeds_mean(scores: ArrayLike) -> SeedsMean:
    """The mean of ``scores`` [S seeds, n items] under x_si = mu + seed_s + item_i + e_si, all random.

    With the mean squares of a two-way table without repeats (Searle, Casella and McCulloch 1992, ch. 4),
    Var(mean) = sd_seed^2 / S + sd_item^2 / n + sd_e^2 / (S n), estimated by (MS_seeds + MS_items - MS_e)
    / (S n); sd_seed^2 = (MS_seeds - MS_e) / n, not below 0. A negative MS_seeds - MS_e is taken as 0, so the
    standard error is never below that of the seeds' averaged item scores. Degrees of freedom:
    Satterthwaite's. One seed: the seed's part is unknown and the standard error NaN, not small.
    """
    x = np.asarray(scores, dtype=float)
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"scores of shape {x.shape}: [seeds, items] with two items or more are needed")
    seeds, n = x.shape
    centre = float(x.mean())
    if seeds == 1:
        return SeedsMean(Estimate(centre, math.nan, n), math.nan, 0.0)
    by_seed, by_item = x.mean(axis=1), x.mean(axis=0)
    ms_seeds = n * float(by_seed.var(ddof=1))
    ms_items = seeds * float(by_item.var(ddof=1))
    rest = x - by_seed[:, None] - by_item[None, :] + centre
    ms_rest = float(np.sum(rest**2)) / ((seeds - 1) * (n - 1))
    between = max(ms_seeds - ms_rest, 0.0)
    stderr = math.sqrt((between + ms_items) / (seeds * n))
    df = satterthwaite([between, ms_items], [seeds - 1, n - 1])
    return SeedsMean(Estimate(centre, stderr, n), math.sqrt(between / n), df)


def seeds_difference(a: ArrayLike, b: ArrayLike) -> SeedsMean:
    """Mean of b less mean of a, each [its own number of seeds, the same n items].

    The item part is that of the differences of item means (pairing); the seed parts of both add up.
    ``seed_sd``: the root of their summed variances. NaN with a single seed on either side.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"scores of shapes {x.shape} and {y.shape}: [seeds, items], the same items")
    first, second = seeds_mean(x), seeds_mean(y)
    d = y.mean(axis=0) - x.mean(axis=0)
    parts = [first.seed_sd**2 / len(x), second.seed_sd**2 / len(y), float(d.var(ddof=1)) / d.size]
    df = satterthwaite(parts, [len(x) - 1, len(y) - 1, d.size - 1])
    value = Estimate(float(d.mean()), math.sqrt(sum(parts)), d.size)
    return SeedsMean(value, math.hypot(first.seed_sd, second.seed_sd), df)
