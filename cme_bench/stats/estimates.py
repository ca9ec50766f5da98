"""Point estimates and standard errors of means. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, its standard error (NaN where it cannot be known) and the number of items behind it."""

    value: float
    stderr: float
    n: int


def mean(values: ArrayLike) -> Estimate:
    """Sample mean with s / sqrt(n), s the sample standard deviation (n - 1).

    For 0/1 values that is sqrt(p (1 - p) / (n - 1)), lm-eval's ``mean_stderr``. One value: the standard
    error is NaN, not 0.
    """
    x = np.asarray(values, dtype=float)
    if x.size == 0:
        return Estimate(math.nan, math.nan, 0)
    stderr = float(x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else math.nan
    return Estimate(float(x.mean()), stderr, int(x.size))


def macro_mean(parts: Sequence[Estimate]) -> Estimate:
    """Return the unweighted mean of k independent estimates: SE = sqrt(sum of SE_i^2) / k; ``n`` is their
    total.

    The k parts are fixed (CME's domains, not a sample of domains), so their spread does not enter.
    """
    if not parts:
        return Estimate(math.nan, math.nan, 0)
    k = len(parts)
    return Estimate(
        value=sum(p.value for p in parts) / k,
        stderr=math.sqrt(sum(p.stderr**2 for p in parts)) / k,
        n=sum(p.n for p in parts),
    )
