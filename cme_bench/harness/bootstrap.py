"""Standard errors of lm-eval's aggregations, by its own bootstrap, in this process.

lm-eval draws in a pool of processes, which waits for ever where the parent handles signals, and computes
corpus metrics from the texts each time. Here the same draws (its seed, 0) are taken without a pool, and
corpus metrics from the counts of each sentence.
"""

from __future__ import annotations

import functools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

RESAMPLES = 100
"""lm-eval's number for corpus metrics; here for all, which bounds the time."""
BOOTSTRAPPED = frozenset("median matthews_corrcoef f1 perplexity bleu chrf chrf++ ter nanmean".split())
"""Aggregations for which lm-eval estimates an error by bootstrap."""


def bootstrap_stderr(name: str, aggregate: Callable[[Any], float], values: Sequence[Any]) -> float:
    """Return the standard deviation of ``aggregate`` over RESAMPLES resamples of ``values``.

    That is lm-eval's ``bootstrap_stderr`` with ``iters=100``. NaN for an aggregation ``name`` of which
    lm-eval knows no error, for fewer than two values, and if a resample has no value.
    """
    if name not in BOOTSTRAPPED or len(values) < 2:
        return math.nan
    score = corpus_score(name, values)
    draws = random.Random(0)
    places = range(len(values))
    estimates: list[float] = []
    for _ in range(RESAMPLES):
        drawn = draws.choices(places, k=len(values))
        estimates.append(float(score(drawn) if score else aggregate([values[i] for i in drawn])))
    return statistics.stdev(estimates) if all(map(math.isfinite, estimates)) else math.nan


def corpus_score(name: str, pairs: Sequence[Any]) -> Callable[[Sequence[int]], float] | None:
    """Return how to score any selection of (reference, answer) ``pairs`` from counts that are made once.

    None for an aggregation that is no corpus metric of sacrebleu, and where items have different numbers of
    references: of those lm-eval takes as many as every item of a selection has.
    """
    if name not in _CORPUS_METRICS or len({_references(pair) for pair in pairs}) > 1:
        return None
    from lm_eval.api.metrics import _sacreformat

    references, answers = _sacreformat(*zip(*pairs, strict=True))
    metric = _CORPUS_METRICS[name]()
    metric._check_corpus_score_args(answers, references)
    counts = metric._extract_corpus_statistics(answers, references)
    return lambda drawn: float(metric._aggregate_and_compute([counts[i] for i in drawn]).score)


def _references(pair: Any) -> int | None:
    """Return the number of references of an item; None for one text."""
    return None if isinstance(pair[0], str) else len(pair[0])


def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU()


def _chrf(word_order: int) -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=word_order)


def _ter() -> Any:
    from sacrebleu.metrics.ter import TER

    return TER()


_CORPUS_METRICS: dict[str, Callable[[], Any]] = {
    "bleu": _bleu,
    "chrf": functools.partial(_chrf, 0),
    "chrf++": functools.partial(_chrf, 2),
    "ter": _ter,
}
