"""Standard errors by bootstrap: lm-eval's numbers, in this process, in bounded time."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import random
import time
from typing import Any

import pytest
from lm_eval.api import metrics
from lm_eval.api.registry import aggregation_registry, get_aggregation

from cme_bench.harness.bootstrap import BOOTSTRAPPED, bootstrap_stderr, corpus_score

SOURCE = random.Random(3)
WORDS = "the red fox sees a blue bird on some old grey house".split()


def sentence() -> str:
    return " ".join(SOURCE.choices(WORDS, k=SOURCE.randint(2, 9)))


NUMBERS = [SOURCE.random() - 3 for _ in range(30)]
CLASSES = [(SOURCE.randint(0, 1), SOURCE.randint(0, 1)) for _ in range(30)]
TEXTS = [(sentence(), sentence()) for _ in range(30)]
VALUES: dict[str, list[Any]] = {
    **dict.fromkeys(("median", "nanmean", "perplexity"), NUMBERS),
    **dict.fromkeys(("f1", "matthews_corrcoef"), CLASSES),
    **dict.fromkeys(("bleu", "chrf", "chrf++", "ter"), TEXTS),
}


@pytest.fixture(autouse=True)
def no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool is an error here; lm-eval's own function runs without one, too."""
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    monkeypatch.setattr(multiprocessing, "Pool", None)


def test_the_list_is_lm_evals() -> None:
    known = {name for name in aggregation_registry if metrics.stderr_for_metric(get_aggregation(name), 100)}
    assert known - {"mean"} == set(BOOTSTRAPPED) == set(VALUES)


@pytest.mark.parametrize("name", sorted(VALUES))
def test_errors_are_lm_evals(name: str) -> None:
    aggregate, values = get_aggregation(name), VALUES[name]
    assert aggregate is not None
    expected = metrics.bootstrap_stderr(aggregate, values, 100)
    assert expected > 0
    assert bootstrap_stderr(name, aggregate, values) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["bleu", "chrf", "chrf++", "ter"])
def test_corpus_scores_from_counts_are_those_of_the_texts(name: str) -> None:
    aggregate = get_aggregation(name)
    several = [([one, two], answer) for (one, answer), (two, _) in itertools.pairwise(TEXTS)]
    for pairs in (TEXTS, several):
        drawn = SOURCE.choices(range(len(pairs)), k=20)
        score = corpus_score(name, pairs)
        assert score is not None and aggregate is not None
        assert score(drawn) == pytest.approx(aggregate([pairs[i] for i in drawn]))
    uneven = [*several, (["one"], "one")]
    assert corpus_score(name, uneven) is None
    if name == "chrf":  # the quickest of them
        expected = metrics.bootstrap_stderr(aggregate, uneven, 100)
        assert bootstrap_stderr(name, aggregate, uneven) == pytest.approx(expected)


def test_a_large_corpus_takes_seconds() -> None:
    pairs = [(sentence(), sentence()) for _ in range(500)]
    started = time.monotonic()
    for name in ("bleu", "chrf", "ter"):
        assert bootstrap_stderr(name, get_aggregation(name), pairs) > 0
    assert time.monotonic() - started < 10


def test_no_error_where_lm_eval_knows_none() -> None:
    brier = [(0, [0.4, 0.6]), (1, [0.4, 0.6])]
    for name, values in (("brier_score", brier), ("perplexity", [-1.0]), ("!function own", [1.0, 2.0])):
        stderr = bootstrap_stderr(name, lambda found: float(len(found)), values)
        assert math.isnan(stderr)
