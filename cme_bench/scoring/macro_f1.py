"""Macro-F1: the mean over classes of each class's F1, from pairs of (right class, answered class)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

NO_ANSWER = -1
"""Stands for the answered class where no rule found an answer; it is no class of its own."""

Pair = Sequence[int]
"""(right class, answered class or NO_ANSWER)."""


def f1_macro(pairs: Iterable[Pair]) -> float:
    """Return the mean F1 over the classes that occur as right or answered (scikit-learn's default); NaN
    without pairs.

    F1 of a class is 2 TP / (2 TP + FP + FN); an item without an answer is a FN of its class.
    """
    return _f1_macro(Counter((int(gold), int(answered)) for gold, answered in pairs))


def _f1_macro(counts: Counter[tuple[int, int]]) -> float:
    right: Counter[int] = Counter()
    total: Counter[int] = Counter()  # 2 TP + FP + FN
    for (gold, answered), count in counts.items():
        total[gold] += count
        if answered != NO_ANSWER:
            total[answered] += count
        if gold == answered:
            right[gold] += count
    classes = [c for c in total if total[c]]
    if not classes:
        return math.nan
    return sum(2 * right[c] / total[c] for c in classes) / len(classes)


def f1_macro_stderr(pairs: Iterable[Pair]) -> float:
    """Return the jackknife standard error of :func:`f1_macro` (Efron and Stein 1981); NaN for fewer than two
    items. It is sqrt((n-1)/n sum (f_i - mean f)^2), f_i without item i. Equal pairs leave equal f_i, so the
    cost is that of the distinct pairs."""
    counts = Counter((int(gold), int(answered)) for gold, answered in pairs)
    n = counts.total()
    if n < 2:
        return math.nan
    without = {pair: _f1_macro(counts - Counter([pair])) for pair in counts}
    mean = sum(without[pair] * count for pair, count in counts.items()) / n
    spread = sum(count * (without[pair] - mean) ** 2 for pair, count in counts.items())
    return math.sqrt((n - 1) / n * spread)
