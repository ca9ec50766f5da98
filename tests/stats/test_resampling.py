"""Sign flips and bootstrap: both ways of drawing against each other, scipy, closed forms, and their level."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cme_bench.stats import resampling
from cme_bench.stats.paired import mcnemar
from cme_bench.stats.resampling import bootstrap, permutation_pvalues, share_best, sign_flips


def scores(n: int, models: int, *, binary: bool, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shared = rng.random((n, 1))
    x = 0.6 * shared + 0.4 * rng.random((n, models)) ** np.linspace(1, 1.5, models)
    return (x > 0.5).astype(float) if binary else x


def pair_pvalue(x: np.ndarray, resamples: int = 20_000) -> float:
    return float(permutation_pvalues(x.mean(axis=0), sign_flips(x, resamples=resamples))[0, 1])


@pytest.mark.parametrize("binary", [False, True])
def test_permutation_test_is_scipys(binary: bool) -> None:
    x = scores(120, 2, binary=binary, seed=5)
    expected = stats.permutation_test(
        (x[:, 0], x[:, 1]),
        lambda a, b, axis: np.mean(b - a, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    )
    assert pair_pvalue(x) == pytest.approx(expected.pvalue, abs=0.012)


def test_few_items_against_all_sign_patterns() -> None:
    x = scores(9, 2, binary=False, seed=1)
    d = x[:, 1] - x[:, 0]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1)
    exact = np.mean(np.abs(d @ signs) >= abs(d.sum()) - 1e-12)
    assert pair_pvalue(x, 40_000) == pytest.approx(exact, abs=0.01)


def test_permutation_of_accuracies_is_mcnemars_exact_test() -> None:
    x = scores(1500, 2, binary=True, seed=2)
    wins, losses = int((x[:, 1] > x[:, 0]).sum()), int((x[:, 1] < x[:, 0]).sum())
    assert pair_pvalue(x) == pytest.approx(float(mcnemar(wins, losses)), abs=0.01)


@pytest.mark.parametrize("draw", [sign_flips, bootstrap])
def test_both_ways_of_drawing_have_one_distribution(draw, monkeypatch: pytest.MonkeyPatch) -> None:
    x = scores(3000, 3, binary=True)
    grouped = draw(x, resamples=20_000)
    monkeypatch.setattr(resampling, "_FEW", 10**9)
    looked_up = draw(x, resamples=20_000)
    assert not np.array_equal(grouped, looked_up)
    assert grouped.mean(axis=0) == pytest.approx(looked_up.mean(axis=0), abs=4e-4)
    covariances = np.cov(grouped.T), np.cov(looked_up.T)
    assert covariances[0] == pytest.approx(covariances[1], rel=0.06, abs=1e-7)
    for j in range(3):
        assert stats.ks_2samp(grouped[:, j], looked_up[:, j]).statistic < 0.03


def test_bootstrap_is_scipys() -> None:
    x = scores(400, 2, binary=False)
    d = x[:, 1] - x[:, 0]
    draws = bootstrap(x, resamples=20_000)
    expected = stats.bootstrap(
        (d,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    )
    found = np.quantile(draws[:, 1] - draws[:, 0], [0.025, 0.975])
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.03 * width)
    assert draws.std(axis=0) == pytest.approx(stats.sem(x), rel=0.02)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_few_items_are_drawn_exactly(n: int) -> None:
    x = scores(n, 2, binary=False)
    draws = bootstrap(x, resamples=5000)
    assert np.isfinite(draws).all()
    assert draws.mean(axis=0) == pytest.approx(x.mean(axis=0), abs=0.01)
    assert len(np.unique(draws.round(9), axis=0)) <= np.prod([(2 * n - k) / (n - k) for k in range(1, n)])


def test_poisson_weights_have_mean_and_variance_one() -> None:
    table = resampling._POISSON
    assert table.size == 256
    assert table.mean() == 1
    assert table.var() == 1


def test_the_same_seed_gives_the_same_numbers_on_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = scores(300, 3, binary=False)
    first = bootstrap(x, resamples=12_000, seed=7)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert np.array_equal(first, bootstrap(x, resamples=12_000, seed=7))
    assert not np.array_equal(first, bootstrap(x, resamples=12_000, seed=8))


def test_permutation_tests_keep_their_level() -> None:
    """10,000 pairs of equally good models on 100 items, 999 flips each; its own error is 0.22 points.

    (The level of accuracies is that of McNemar's test, computed exactly in test_paired.)"""
    rejected, pairs = 0, 0
    for seed in range(5):
        x = np.random.default_rng(seed).beta(1.2, 4, (100, 4000))
        flips = sign_flips(x, resamples=999, seed=seed)
        observed = np.abs(x[:, 1::2].mean(axis=0) - x[:, 0::2].mean(axis=0))
        extreme = (np.abs(flips[:, 1::2] - flips[:, 0::2]) >= observed - 1e-7).sum(axis=0)
        rejected += int(((1 + extreme) / 1000 <= 0.05).sum())
        pairs += extreme.size
    assert pairs == 10_000
    assert 0.043 <= rejected / pairs <= 0.057


def test_share_best_counts_ties_by_halves() -> None:
    assert share_best(np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [2.0, 1.0]])) == pytest.approx(
        [0.625, 0.375]
    )


def test_no_items_are_refused() -> None:
    with pytest.raises(ValueError, match="with an item at least"):
        sign_flips(np.zeros((0, 2)))
