"""Two models on the same items: difference, interval and test. All differences are b - a."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from cme_bench.stats.estimates import Estimate, mean
from cme_bench.stats.intervals import clustered_mean, is_binary, satterthwaite, student


@dataclass(frozen=True, slots=True)
class Difference:
    """b - a over n paired items, its standard error and interval. ``wins``: items on which b scores higher;
    ``df``: degrees of freedom of the standard error."""

    value: float
    stderr: float
    low: float
    high: float
    n: int
    wins: int
    losses: int
    df: float

    @property
    def ties(self) -> int:
        return self.n - self.wins - self.losses


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Difference:
    """Return the mean of b_i - a_i. Pairing takes out what items have in common: the standard error is that
    of the mean of the differences, s_d / sqrt(n) (cluster-robust with ``clusters``).

    The interval is Student's; for 0/1 scores without clusters it is Bonett and Price's (2012), which
    Fagerland, Lydersen and Laake (2014) recommend: with w wins and l losses, p = (w + 1) / (n + 2),
    q = (l + 1) / (n + 2), p - q ± z sqrt((p + q - (p - q)^2) / (n + 2)). It has a width where no item
    differs, and ``stderr`` is then the square root above, not 0. Raises ValueError for unequal lengths.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape:
        raise ValueError(f"paired scores of unequal length: {x.size} and {y.size}")
    d = y - x
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    if clusters is not None:
        estimate, df = clustered_mean(d, clusters), float(len(set(clusters)) - 1)
    else:
        estimate, df = mean(d), float(d.size - 1)
    if clusters is None and is_binary(x) and is_binary(y):
        low, high, stderr = bonett_price(wins, losses, d.size, level)
        if estimate.stderr == 0:
            estimate = Estimate(estimate.value, stderr, estimate.n)
    else:
        low, high = student(estimate, max(df, 1.0), level)
    return Difference(estimate.value, estimate.stderr, low, high, int(d.size), wins, losses, df)


def bonett_price(wins: int, losses: int, n: int, level: float = 0.95) -> tuple[float, float, float]:
    """Return the interval of a difference of paired shares (Bonett and Price 2012), and its standard
    error."""
    z = float(stats.norm.isf((1 - level) / 2))
    p, q = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    stderr = math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(p - q - z * stderr, -1.0), min(p - q + z * stderr, 1.0), stderr


def macro_difference(parts: Sequence[tuple[float, Difference]], level: float = 0.95) -> Difference:
    """Return sum w_i d_i over independent parts (datasets, domains) with weights w_i: SE = sqrt(sum (w_i
    SE_i)^2), Student's interval with Satterthwaite's degrees of freedom. A single part of weight 1 keeps its
    own."""
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1]
    variances = [(weight * part.stderr) ** 2 for weight, part in parts]
    df = satterthwaite(variances, [part.df for _, part in parts])
    n = sum(part.n for _, part in parts)
    total = Estimate(sum(weight * part.value for weight, part in parts), math.sqrt(sum(variances)), n)
    low, high = student(total, df, level)
    wins, losses = sum(part.wins for _, part in parts), sum(part.losses for _, part in parts)
    return Difference(total.value, total.stderr, low, high, n, wins, losses, df)


def mcnemar(wins: ArrayLike, losses: ArrayLike, *, mid: bool = False) -> NDArray[np.float64]:
    """Return the two-sided p of McNemar's exact test (1947); 1 where no item differs. Of the w + l items on
    which exactly one model is right, w is Binomial(w + l, 1/2) if neither is better.

    It never rejects more than it says, and often less. ``mid=True`` counts half of the observed outcome's
    probability (Lancaster 1961; Fagerland, Lydersen and Laake 2013): closer to its level, no guarantee.
    """
    w, m = np.asarray(wins), np.asarray(wins) + np.asarray(losses)
    smaller = np.minimum(w, m - w)
    p = 2 * stats.binom.cdf(smaller, m, 0.5)
    if mid:
        p = p - stats.binom.pmf(smaller, m, 0.5)
        return np.asarray(np.where(m == 0, 1.0, np.minimum(p, 1.0)))
    return np.asarray(np.minimum(p, 1.0))
