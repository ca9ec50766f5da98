"""Two runs in a metric that is no mean over items (perplexity, BLEU, F1 of two classes): resampled.

A resample scores the whole task anew, so there are fewer of them than for means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cme_bench.harness.aggregations import known_aggregation
from cme_bench.harness.bootstrap import corpus_score
from cme_bench.stats.paired import Difference

RESAMPLES = 1000
Score = Callable[[Sequence[int]], float]
"""The aggregate of the values at some places: those of run A, then those of run B (from n on)."""


@dataclass(frozen=True, slots=True)
class Resampled:
    """Scores ``a`` and ``b`` of two runs; ``flips`` [R]: b - a where items change sides at random."""

    a: float
    b: float
    difference: Difference
    flips: NDArray[np.float64]


def resampled_difference(
    name: str, a: Sequence[Any], b: Sequence[Any], *, seed: int = 0, resamples: int = RESAMPLES
) -> Resampled | None:
    """Return both scores, the bootstrap standard error and interval (normal) of b - a, and permutations.

    ``a``, ``b``: the items' values, paired. None for an aggregation that is not at hand.
    """
    score = _score(name, [*a, *b])
    if score is None:
        return None
    n, draws = len(a), np.random.default_rng(seed)
    places = np.arange(n)
    first, second = score(places.tolist()), score((n + places).tolist())
    drawn = [places[draws.integers(n, size=n)] for _ in range(resamples)]
    boot = np.array([score((n + d).tolist()) - score(d.tolist()) for d in drawn])
    sides = [n * draws.integers(2, size=n) for _ in range(resamples)]
    flips = np.array([score((n - s + places).tolist()) - score((s + places).tolist()) for s in sides])
    stderr = float(boot.std(ddof=1)) if n > 1 else math.nan
    value = second - first
    wins, losses = _better(a, b), _better(b, a)
    low, high = value - 1.96 * stderr, value + 1.96 * stderr
    return Resampled(first, second, Difference(value, stderr, low, high, n, wins, losses, math.inf), flips)


def _score(name: str, values: Sequence[Any]) -> Score | None:
    if quick := corpus_score(name, values):
        return quick
    aggregate = known_aggregation(name)
    return None if aggregate is None else lambda drawn: float(aggregate([values[i] for i in drawn]))


def _better(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Count the items on which the number of b is larger: log-likelihoods and shares; other values are not
    counted."""
    pairs = zip(a, b, strict=True)
    return sum(isinstance(x, int | float) and isinstance(y, int | float) and y > x for x, y in pairs)
