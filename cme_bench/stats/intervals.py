"""Confidence intervals of shares and means. Pure functions of numbers; all of them take arrays."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from cme_bench.stats.estimates import Estimate

Floats = NDArray[np.float64]


def wilson(successes: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return Wilson's score interval (1927) of a share: the p that a z-test of k out of n does not reject.

    (k + z^2/2 ± z sqrt(k (n - k) / n + z^2/4)) / (n + z^2), z the normal quantile of 1 - (1 - level) / 2.
    Within [0, 1], and of positive width at k = 0 and k = n. n = 0: [0, 1].
    """
    k, n = np.asarray(successes, dtype=float), np.asarray(n, dtype=float)
    z = float(stats.norm.isf((1 - level) / 2))
    centre = (k + z**2 / 2) / (n + z**2)
    half = z * np.sqrt(k * (n - k) / np.maximum(n, 1) + z**2 / 4) / (n + z**2)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def student(estimate: Estimate, df: float, level: float = 0.95) -> tuple[float, float]:
    """Return value ± t SE, t the quantile of Student's distribution with ``df`` degrees of freedom; NaNs
    without a standard error."""
    if math.isnan(estimate.stderr):
        return math.nan, math.nan
    half = float(stats.t.isf((1 - level) / 2, df)) * estimate.stderr
    return estimate.value - half, estimate.value + half


def satterthwaite(variances: ArrayLike, df: ArrayLike) -> float:
    """Return the degrees of freedom of a sum of independent variance estimates (Satterthwaite 1946; Welch
    1947). They are (sum v_i)^2 / sum(v_i^2 / df_i), infinite where every variance is 0."""
    v, d = np.asarray(variances, dtype=float), np.asarray(df, dtype=float)
    bottom = float(np.sum(v**2 / np.maximum(d, 1)))
    return float(v.sum() ** 2 / bottom) if bottom > 0 else math.inf


def clustered_mean(values: ArrayLike, clusters: Sequence[Hashable]) -> Estimate:
    """Return the mean of items that come in groups that were drawn together (questions about one passage).

    SE = sqrt(C / (C - 1) sum_c (sum_{i in c} (x_i - mean))^2) / n over C clusters: the cluster-robust
    standard error of an intercept (Liang and Zeger 1986; CR1), which Miller (2024, arXiv 2411.00640) asks
    for in evaluations. ``n`` stays the number of items. One cluster: NaN. Every item a cluster of its own:
    :func:`~.estimates.mean`.
    """
    x = np.asarray(values, dtype=float)
    if x.size == 0:
        return Estimate(math.nan, math.nan, 0)
    sums = cluster_sums(x - x.mean(), clusters)
    count = sums.size
    stderr = math.sqrt(count / (count - 1) * float(np.sum(sums**2))) / x.size if count > 1 else math.nan
    return Estimate(float(x.mean()), stderr, int(x.size))


def cluster_sums(values: Floats, clusters: Sequence[Hashable]) -> Floats:
    """Sum over the items of each cluster; clusters stand in order of first appearance."""
    if len(clusters) != values.size:
        raise ValueError(f"{values.size} values, but {len(clusters)} cluster labels")
    number = {label: i for i, label in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros(len(number))
    np.add.at(sums, [number[label] for label in clusters], values)
    return sums


def is_binary(values: Floats) -> bool:
    """Return whether every value is 0 or 1 (and there is one)."""
    return bool(values.size) and bool(np.all((values == 0) | (values == 1)))
