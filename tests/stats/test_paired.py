"""Paired differences and McNemar's test: against scipy and statsmodels, coverage and level."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from cme_bench.stats.paired import bonett_price, macro_difference, mcnemar, paired_difference


def test_difference_of_scores_is_the_paired_t_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(80), rng.random(80)
    found = paired_difference(a, b)
    test = stats.ttest_rel(b, a)
    assert found.value == pytest.approx(np.mean(b - a))
    assert found.stderr == pytest.approx(stats.sem(b - a))
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert (found.wins, found.losses) == (int((b > a).sum()), int((b < a).sum()))


def test_pairing_beats_two_separate_standard_errors() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(2000)
    a, b = (rng.random(2000) < hard).astype(float), (rng.random(2000) < hard).astype(float)
    assert paired_difference(a, b).stderr < 0.9 * math.hypot(stats.sem(a), stats.sem(b))


def test_equal_answers_leave_an_interval_of_positive_width() -> None:
    found = paired_difference([1, 0, 1, 1], [1, 0, 1, 1])
    assert found.value == 0
    assert found.low < 0 < found.high
    assert found.stderr > 0
    assert (found.wins, found.losses, found.ties) == (0, 0, 4)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="unequal length"):
        paired_difference([1, 0], [1])


def test_bonett_price_by_hand() -> None:
    low, high, stderr = bonett_price(wins=8, losses=3, n=40)
    p, q = 9 / 42, 4 / 42
    assert stderr == pytest.approx(math.sqrt((p + q - (p - q) ** 2) / 42))
    assert (low, high) == pytest.approx((p - q - 1.959964 * stderr, p - q + 1.959964 * stderr))


def bonett_price_coverage(p: float, q: float, n: int) -> float:
    """Exact: sums the trinomial probabilities of (wins, losses) whose interval holds p - q."""
    wins = np.arange(n + 1)[:, None]
    losses = np.arange(n + 1)[None, :]
    possible = wins + losses <= n
    rest = np.where(possible, n - wins - losses, 0)
    logs = stats.binom.logpmf(wins, n, p) + stats.binom.logpmf(
        np.where(possible, losses, 0), np.maximum(n - wins, 0), q / (1 - p)
    )
    assert rest.min() == 0
    x, y = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    half = stats.norm.isf(0.025) * np.sqrt(np.maximum(x + y - (x - y) ** 2, 0) / (n + 2))
    return float(np.exp(logs)[possible & (np.abs(x - y - (p - q)) <= half)].sum())


@pytest.mark.parametrize("n", [50, 500])
@pytest.mark.parametrize(("wins", "losses"), [(0.1, 0.1), (0.2, 0.1), (0.3, 0.2), (0.35, 0.05)])
def test_paired_shares_are_covered(wins: float, losses: float, n: int) -> None:
    few = n * (wins + losses) <= 10  # then the interval errs on the wide side
    assert 0.94 <= bonett_price_coverage(wins, losses, n) <= (0.97 if few else 0.96)


def test_bonett_price_errs_on_the_safe_side_where_few_items_differ() -> None:
    assert bonett_price_coverage(0.02, 0.01, 50) >= 0.95


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 1), (12, 12), (40, 71)])
def test_mcnemar_is_statsmodels_and_scipys(wins: int, losses: int) -> None:
    table = [[10, losses], [wins, 10]]
    expected = statsmodels_mcnemar(table, exact=True).pvalue if wins + losses else 1.0
    assert float(mcnemar(wins, losses)) == pytest.approx(expected)
    if wins + losses:
        assert float(mcnemar(wins, losses)) == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)


def mcnemar_size(n: int, discordant: float, *, mid: bool) -> float:
    """Exact: how often a test at 5 % rejects when neither of two models is better."""
    size = 0.0
    for m, weight in enumerate(stats.binom.pmf(np.arange(n + 1), n, discordant)):
        if weight > 1e-12:
            wins = np.arange(m + 1)
            rejected = mcnemar(wins, m - wins, mid=mid) <= 0.05
            size += weight * stats.binom.pmf(wins, m, 0.5)[rejected].sum()
    return size


@pytest.mark.parametrize(("n", "discordant"), [(50, 0.3), (500, 0.1), (500, 0.4), (3000, 0.3)])
def test_mcnemar_keeps_its_level(n: int, discordant: float) -> None:
    exact, mid = (mcnemar_size(n, discordant, mid=mid) for mid in (False, True))
    assert exact <= 0.05
    assert 0.043 <= mid <= 0.057
    assert exact < mid


def test_macro_difference_weighs_parts_and_adds_variances() -> None:
    rng = np.random.default_rng(0)
    one = paired_difference(rng.random(30), rng.random(30))
    two = paired_difference(rng.random(90), rng.random(90))
    found = macro_difference([(0.5, one), (0.5, two)])
    assert found.value == pytest.approx((one.value + two.value) / 2)
    assert found.stderr == pytest.approx(math.hypot(one.stderr, two.stderr) / 2)
    assert (found.n, found.wins) == (120, one.wins + two.wins)
    assert macro_difference([(1.0, one)]) is one


def test_macro_interval_covers() -> None:
    """4,000 draws of three tasks of unlike size and spread; the simulation's error is 0.35 points."""
    rng = np.random.default_rng(4)
    sizes, spreads, shift = (25, 60, 400), (0.3, 0.2, 0.1), 0.02
    hits = 0
    for _ in range(4000):
        parts = [
            paired_difference(np.zeros(n), rng.normal(shift, s, n))
            for n, s in zip(sizes, spreads, strict=True)
        ]
        found = macro_difference([(1 / 3, part) for part in parts])
        hits += found.low <= shift <= found.high
    assert 0.94 <= hits / 4000 <= 0.96


def test_clusters_widen_a_difference() -> None:
    rng = np.random.default_rng(0)
    passages = np.repeat(np.arange(40), 5)
    a = np.zeros(200)
    b = rng.normal(size=40)[passages] + 0.1 * rng.normal(size=200)
    plain, grouped = paired_difference(a, b), paired_difference(a, b, clusters=list(passages))
    assert grouped.stderr > 1.8 * plain.stderr
    assert grouped.df == 39
