"""Holm against statsmodels; power and random seeds by simulation and against an analysis of variance."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower

from cme_bench.stats.intervals import student
from cme_bench.stats.multiple import holm
from cme_bench.stats.power import detectable
from cme_bench.stats.seeds import SeedsMean, seeds_difference, seeds_mean


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.5], [0.9, 0.8, 0.02], [0.01, 0.01, 0.01]])
def test_holm_is_statsmodels(p: list[float]) -> None:
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_skips_what_was_not_tested() -> None:
    found = holm([0.01, math.nan, 0.04])
    assert math.isnan(found[1])
    assert found[[0, 2]] == pytest.approx([0.02, 0.04])


def test_detectable_effect_is_statsmodels() -> None:
    n = 400  # two groups of n, unit variance: the standard error of their difference is sqrt(2 / n)
    expected = NormalIndPower().solve_power(nobs1=n, alpha=0.05, power=0.8)
    assert detectable(math.sqrt(2 / n)) == pytest.approx(expected, rel=1e-3)


def test_detectable_effect_is_found_in_four_of_five_trials() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(detectable(1.0), 1.0, 100_000)
    assert np.mean(np.abs(z) > 1.959964) == pytest.approx(0.8, abs=0.006)


def draw(rng: np.random.Generator, seeds: int, n: int, seed_sd: float) -> np.ndarray:
    return (
        0.5
        + seed_sd * rng.normal(size=(seeds, 1))
        + 0.3 * rng.normal(size=(1, n))
        + 0.2 * rng.normal(size=(seeds, n))
    )


def interval(found: SeedsMean) -> tuple[float, float]:
    return student(found.estimate, found.df)


def test_mean_squares_are_those_of_an_analysis_of_variance() -> None:
    x = draw(np.random.default_rng(0), seeds=4, n=30, seed_sd=0.2)
    frame = (
        pd.DataFrame(x).melt(ignore_index=False, var_name="item", value_name="y").reset_index(names="seed")
    )
    table = anova_lm(ols("y ~ C(seed) + C(item)", frame).fit())
    seed, item, rest = (float(table["mean_sq"].iloc[i]) for i in range(3))
    found = seeds_mean([x])
    assert found.estimate.value == pytest.approx(x.mean())
    assert found.estimate.stderr == pytest.approx(math.sqrt((seed + item - rest) / x.size))
    assert found.seed_sd == pytest.approx(math.sqrt((seed - rest) / 30))


@pytest.mark.parametrize("seed_sd", [0.0, 0.05])
def test_interval_over_seeds_and_items_covers(seed_sd: float) -> None:
    """2,000 draws of 5 seeds and 100 items. Without seed effects the interval errs on the wide side."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        low, high = interval(seeds_mean([draw(rng, 5, 100, seed_sd)]))
        hits += low <= 0.5 <= high
    assert 0.935 <= hits / 2000 <= 0.975


def test_a_seed_that_is_good_everywhere_widens_the_average() -> None:
    """2,000 draws of three tasks with one seed effect in common: errors taken apart cover 87 % only."""
    rng = np.random.default_rng(5)
    hits, naive = 0, 0
    for _ in range(2000):
        effect = 0.05 * rng.normal(size=(5, 1))
        tasks = [draw(rng, 5, 100, 0.0) + effect for _ in range(3)]
        low, high = interval(seeds_mean(tasks, [1 / 3] * 3))
        hits += low <= 0.5 <= high
        apart = [seeds_mean([t]) for t in tasks]
        stderr = math.sqrt(sum(p.estimate.stderr**2 for p in apart)) / 3
        naive += abs(np.mean([p.estimate.value for p in apart]) - 0.5) <= 1.96 * stderr
    assert 0.93 <= hits / 2000 <= 0.97
    assert naive / 2000 < 0.9


def test_one_seed_says_nothing_about_seeds() -> None:
    found = seeds_mean([draw(np.random.default_rng(0), 1, 50, 0.1)])
    assert math.isnan(found.estimate.stderr)
    with pytest.raises(ValueError, match=r"\[seeds, items\]"):
        seeds_mean([[0.1, 0.2]])


@pytest.mark.parametrize("weights", [(1.0,), (0.25, 0.75)])
def test_difference_of_methods_pairs_items_and_keeps_its_level(weights: tuple[float, ...]) -> None:
    """2,000 draws of two equally good methods, 4 and 3 seeds, whose seeds work alike on all tasks."""
    rng = np.random.default_rng(3)
    rejected = 0
    for _ in range(2000):
        effects = 0.05 * rng.normal(size=(4, 1)), 0.05 * rng.normal(size=(3, 1))
        sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for _ in weights:
            items = 0.3 * rng.normal(size=(1, 80))
            for side, effect in zip(sides, effects, strict=True):
                side.append(0.5 + effect + items + 0.1 * rng.normal(size=(len(effect), 80)))
        found = seeds_difference(*sides, weights)
        rejected += found.pvalue() <= 0.05
        assert found.estimate.n == 80 * len(weights)
    assert 0.03 <= rejected / 2000 <= 0.06


def test_a_clear_difference_is_found_and_one_seed_is_none() -> None:
    rng = np.random.default_rng(4)
    a, b = 0.4 + 0.02 * rng.normal(size=(3, 50)), 0.6 + 0.02 * rng.normal(size=(3, 50))
    assert seeds_difference([a], [b]).pvalue() < 1e-4
    assert seeds_difference([a], [b]).estimate.value == pytest.approx(b.mean() - a.mean())
    assert seeds_difference([a], [a]).pvalue() == 1
    assert math.isnan(seeds_difference([a[:1]], [b]).pvalue())
    with pytest.raises(ValueError, match="the same items on both sides"):
        seeds_difference([a], [b[:, :40]])
