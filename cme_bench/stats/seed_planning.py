"""How many seeds a difference of two methods needs, from spreads alone: blind to who scores higher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]


class CentredScores:
    """Scores of one method without its means: per task [S seeds, its n items], less the task's mean.

    Whoever is given this cannot tell which method scores higher, nor by how much: adding a constant to every
    score of a method in a task changes nothing.
    """

    def __init__(self, tasks: Sequence[ArrayLike]) -> None:
        tables = [np.asarray(scores, dtype=float) for scores in tasks]
        for table in tables:
            if table.ndim != 2 or min(table.shape) < 2:
                raise ValueError(f"scores of shape {table.shape}: two seeds and two items are needed")
        self.tasks = [table - table.mean() for table in tables]

    @property
    def seeds(self) -> int:
        return len(self.tasks[0])


@dataclass(frozen=True, slots=True)
class Spread:
    """Variances that methods share, of one method's weighted average. In the unit of its scores, squared.

    between: of the seeds' true averages; residual: of item by seed, for one seed; interaction: of item by
    method. Var(B - A) with S seeds each is 2 (between / S + residual / S + interaction). ``paired``: seed by
    seed, on the same training rows; the variances are then half of those of the differences.
    """

    between: float
    residual: float
    interaction: float
    paired: bool = False

    def degrees(self, seeds: int) -> int:
        """Return the degrees of freedom of a difference of two methods with ``seeds`` each."""
        return seeds - 1 if self.paired else 2 * (seeds - 1)

    def stderr(self, seeds: int) -> float:
        """Return the standard error of a difference of two methods with ``seeds`` each."""
        return math.sqrt(2 * ((self.between + self.residual) / seeds + self.interaction))

    def detectable(self, seeds: int, *, level: float = 0.05, power: float = 0.8) -> float:
        """Return the true difference that a two-sided t test at ``level`` finds with probability ``power``:
        (t_{1 - level/2} + t_power) SE, with the degrees of freedom of so many seeds."""
        df = self.degrees(seeds)
        return float(stats.t.isf(level / 2, df) + stats.t.ppf(power, df)) * self.stderr(seeds)


def pooled_spread(methods: Sequence[CentredScores], weights: Sequence[float]) -> Spread:
    """Return the spread, pooled over methods of equal standing; ``weights``: of the tasks in the average.

    With y_s the weighted sum of a seed, and MS_e and MS_mi the mean squares of item by seed in one method and
    of item by method between the methods' item means (Searle, Casella and McCulloch 1992, ch. 4):

        residual = sum_t w_t^2 MS_e,t / n_t, the mean over methods
        between = max(mean over methods of var(y_s) - residual, 0)
        interaction = sum_t w_t^2 max(MS_mi,t - MS_e,t / S, 0) / n_t

    Methods may have unlike numbers of seeds S; MS_e / S is then the mean of the methods'.
    """
    if len(methods) < 2:
        raise ValueError("a difference needs two methods")
    residual = interaction = 0.0
    for task, weight in enumerate(weights):
        tables = [method.tasks[task] for method in methods]
        n = tables[0].shape[1]
        rest = np.array([_rest(table) for table in tables])
        of_means = _rest(np.stack([table.mean(axis=0) for table in tables]))
        noise = float(np.mean(rest / [len(table) for table in tables]))
        residual += weight**2 * float(rest.mean()) / n
        interaction += weight**2 * max(of_means - noise, 0.0) / n
    of_seeds = [float(np.var(_averages(method, weights), ddof=1)) for method in methods]
    return Spread(max(float(np.mean(of_seeds)) - residual, 0.0), residual, interaction)


def paired_spread(differences: Sequence[CentredScores], weights: Sequence[float]) -> Spread:
    """Return the spread of methods that are compared seed by seed, from the differences of some pairs of
    them: per pair and task [S seeds, its n items]; the mean over the pairs.

    With y_s the weighted sum of a seed's differences, and MS_i and MS_e the mean squares of items and of what
    seeds and items leave of a task's table, half of

        residual = sum_t w_t^2 MS_e,t / n_t
        between = max(var(y_s) - residual, 0)
        interaction = sum_t w_t^2 max(MS_i,t - MS_e,t, 0) / (S n_t)
    """
    found = []
    for pair in differences:
        residual = interaction = 0.0
        for table, weight in zip(pair.tasks, weights, strict=True):
            seeds, n = table.shape
            rest, items = _rest(table), seeds * float(table.mean(axis=0).var(ddof=1))
            residual += weight**2 * rest / n
            interaction += weight**2 * max(items - rest, 0.0) / (seeds * n)
        between = max(float(np.var(_averages(pair, weights), ddof=1)) - residual, 0.0)
        found.append((between, residual, interaction))
    between, residual, interaction = (float(v) / 2 for v in np.mean(found, axis=0))
    return Spread(between, residual, interaction, paired=True)


def _averages(method: CentredScores, weights: Sequence[float]) -> Floats:
    """Return the weighted average of each seed, up to a constant."""
    sums = [w * table.mean(axis=1) for w, table in zip(weights, method.tasks, strict=True)]
    return np.asarray(np.sum(sums, axis=0))


def _rest(table: Floats) -> float:
    """Return the mean square of what rows and columns leave of a two-way table without repeats."""
    rows, columns = table.shape
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    return float(np.sum(rest**2)) / float((rows - 1) * (columns - 1))


def seeds_for(
    spread: Spread, mde: float, *, level: float = 0.05, power: float = 0.8, first: int = 2, cap: int = 1000
) -> int | None:
    """Return the smallest number of seeds from ``first`` to ``cap`` with a detectable difference of at most
    ``mde``; None if even ``cap`` does not suffice."""
    for seeds in range(max(first, 2), cap + 1):
        if spread.detectable(seeds, level=level, power=power) <= mde:
            return seeds
    return None


def seeds_to_decide(
    spread: Spread, difference: float, margin: float, *, level: float = 0.05, cap: int = 1000
) -> int | None:
    """Return the smallest number of seeds whose intervals would decide a claim if the difference stays as it
    is: the (1 - level) interval excludes 0, or the (1 - 2 level) interval lies within ``margin`` of 0. None
    if ``cap`` seeds do neither: then more items are needed."""
    size = abs(difference)
    for seeds in range(2, cap + 1):
        df, stderr = spread.degrees(seeds), spread.stderr(seeds)
        apart = size > float(stats.t.isf(level / 2, df)) * stderr
        alike = size + float(stats.t.isf(level, df)) * stderr < margin
        if apart or alike:
            return seeds
    return None
