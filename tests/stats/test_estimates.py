"""Means and standard errors against scipy, and the macro mean by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cme_bench.stats.estimates import Estimate, macro_mean, mean


@pytest.mark.parametrize("values", [[0, 1, 1, 0, 1], [0.2, 0.9, 0.4], np.random.default_rng(0).random(1000)])
def test_mean_and_sem_are_scipys(values: list[float]) -> None:
    found = mean(values)
    assert found.value == pytest.approx(np.mean(values))
    assert found.stderr == pytest.approx(stats.sem(values))
    assert found.n == len(values)


def test_binary_standard_error_is_the_binomial_one() -> None:
    p, n = 0.3, 200
    assert mean([1] * 60 + [0] * 140).stderr == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


def test_one_item_has_no_standard_error_and_none_has_no_mean() -> None:
    assert math.isnan(mean([1.0]).stderr)
    assert math.isnan(mean([]).value)
    assert math.isnan(macro_mean([]).value)


def test_macro_mean_weighs_parts_equally_whatever_their_size() -> None:
    found = macro_mean([Estimate(0.2, 0.03, 1000), Estimate(0.6, 0.04, 10)])
    assert found.value == pytest.approx(0.4)
    assert found.stderr == pytest.approx(0.025)
    assert found.n == 1010


def test_macro_standard_error_matches_the_spread_of_repeated_draws() -> None:
    rng = np.random.default_rng(0)
    sizes, rates = (50, 400, 120), (0.2, 0.5, 0.9)
    draws = [
        macro_mean([mean(rng.random(n) < p) for n, p in zip(sizes, rates, strict=True)]) for _ in range(3000)
    ]
    spread = np.std([d.value for d in draws])
    assert np.mean([d.stderr for d in draws]) == pytest.approx(spread, rel=0.05)
