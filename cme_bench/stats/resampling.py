"""Several models on the same items, all pairs at once: sign-flip tests and the paired bootstrap.

Resampling is linear in the scores: one pass over a task serves every pair of models, and weighted sums over
tasks that were resampled independently are the resamples of domains and averages. Two ways to the same
distributions:

* few distinct rows (0/1 scores of m models have at most 2^m): a resample is the count of each distinct row,
  drawn at once. Exact.
* else item by item: every resample has a random byte, which picks a row of a small table. For the signs a
  byte serves eight items (its bits; exact). For the bootstrap it serves one item and picks its weight: the
  multinomial counts are replaced by independent Poisson(1) weights, the mean divided by their sum (Chamandy,
  Muralidharan, Najmi and Naidu 2012), and Poisson(1) by a law in steps of 1/256 with its mean and variance.
  The difference from drawing with replacement is of order 1/n.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
_BLOCK = 5000
"""Resamples that a thread holds at once: their sums lie in the cache, and a look-up outweighs its call."""
_FEW = 100
"""Drawing one count costs about as much as this many table look-ups."""
_SMALL = 64
"""So few items are always drawn by counts: their Poisson weights could all be 0."""
_POISSON = np.repeat(np.arange(6), [95, 92, 49, 15, 4, 1]).astype(np.float32)
"""[256]: Poisson(1) as 256 equally likely weights; mean 1, variance 1, third central moment 0.96."""
_SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1
"""[256, 8]: the bits of a byte as signs."""

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]


def sign_flips(scores: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return [R, m]: means over the n items of s_i (x_ij - mean of row i), from ``scores`` [n, m]. The signs
    s_i = ±1 are random and the same for all models.

    The difference of two columns is what random signs make of the pair's mean difference: its distribution if
    neither model is better. The same seed gives the same numbers.
    """
    x = _checked(scores)
    centred = x - x.mean(axis=1, keepdims=True)
    rows, counts = np.unique(centred, axis=0, return_counts=True)
    if len(rows) * _FEW <= len(x):

        def signs(block: int, source: np.random.SeedSequence) -> Floats:
            drawn = np.random.default_rng(source).binomial(counts, 0.5, size=(block, len(counts)))
            return np.asarray((2.0 * drawn - counts) @ rows)

        return _in_blocks(signs, resamples, seed) / len(x)
    parts = np.split(_widened(centred), range(8, len(x), 8))
    tables: list[Floats32] = [_SIGNS[:, : len(part)] @ part for part in parts]
    sums = _look_up(lambda: tables, resamples, seed)
    return sums[:, : x.shape[1]] / len(x)


def bootstrap(scores: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return [R, m]: means of items drawn with replacement, the same items for all m models; ``scores`` is
    [n, m].

    The same seed gives the same numbers.
    """
    x = _checked(scores)
    n, models = x.shape
    rows, counts = np.unique(x, axis=0, return_counts=True)
    if len(rows) * _FEW <= n or n <= _SMALL:

        def picks(block: int, source: np.random.SeedSequence) -> Floats:
            drawn = np.random.default_rng(source).multinomial(n, counts / n, size=block)
            return np.asarray(drawn @ rows)

        return np.asarray(_in_blocks(picks, resamples, seed) / n)
    means = x.mean(axis=0)
    weighted = _widened(np.column_stack([x - means, np.ones(n)]))
    sums = _look_up(lambda: (np.multiply.outer(_POISSON, row) for row in weighted), resamples, seed)
    return np.asarray(means + sums[:, :models] / sums[:, models : models + 1])


def permutation_pvalues(means: ArrayLike, flips: Floats) -> Floats:
    """Return [m, m]: two-sided paired permutation tests (Fisher 1935) of every pair, ones on the diagonal.

    p = (1 + number of flips at least as extreme) / (1 + R), never 0 (Phipson and Smyth 2010). A flip counts
    as extreme within rounding error of the observed difference.
    """
    observed = np.asarray(means, dtype=float)
    resamples, m = flips.shape
    p = np.ones((m, m))
    for i in range(m):
        for j in range(i + 1, m):
            null = np.abs(flips[:, j] - flips[:, i])
            slack = 1e-9 + 1e-5 * null.std()
            extreme = np.count_nonzero(null >= abs(observed[j] - observed[i]) - slack)
            p[i, j] = p[j, i] = (1 + extreme) / (1 + resamples)
    return p


def share_best(draws: Floats) -> Floats:
    """Return [m]: how often each model has the highest mean among bootstrap ``draws`` [R, m]; a tie is
    shared."""
    top = draws >= draws.max(axis=1, keepdims=True) - 1e-9
    return np.asarray((top / top.sum(axis=1, keepdims=True)).mean(axis=0))


def _checked(scores: ArrayLike) -> Floats:
    x = np.asarray(scores, dtype=float)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"scores of shape {x.shape}: [items, models] with an item at least are needed")
    return x


def _widened(columns: Floats) -> Floats32:
    """Return float32 columns, with zeros up to a power of two: NumPy picks such rows twice as fast."""
    width = columns.shape[1]
    room = np.zeros((len(columns), 1 << (width - 1).bit_length()), np.float32)
    room[:, :width] = columns
    return room


def _look_up(tables: Callable[[], Iterable[Floats32]], resamples: int, seed: int) -> Floats:
    """Return [R, width]: the sum over tables [256, width] of the rows that random bytes pick, in float32."""

    def sums(block: int, source: np.random.SeedSequence) -> Floats:
        bits = np.random.SFC64(source)
        total: Floats32 | float = 0.0
        picked: Floats32 | None = None
        for table in tables():
            raw = np.asarray(bits.random_raw(-(-block // 8))).view(np.uint8)[:block]
            picked = np.take(table, raw, axis=0, out=picked, mode="clip")
            total += picked
        return np.asarray(total, dtype=float)

    return _in_blocks(sums, resamples, seed)


def _in_blocks(draw: Callable[[int, np.random.SeedSequence], Floats], resamples: int, seed: int) -> Floats:
    """Return resamples drawn in blocks on all cores. Every block has a random source of its own, so that the
    number of cores does not matter."""
    blocks = [min(_BLOCK, resamples - start) for start in range(0, resamples, _BLOCK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(draw, blocks, np.random.SeedSequence(seed).spawn(len(blocks)))))
