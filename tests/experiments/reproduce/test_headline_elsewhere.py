"""The headline interval, computed again from score bits of known spread by statsmodels and by scipy."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from cme_bench.experiments.reproduce.contrasts import contrast, over_pairs, over_seeds
from cme_bench.experiments.reproduce.views import RowRuns
from cme_bench.reports.runs import open_run
from cme_bench.runs.pack import pack_run
from cme_bench.stats.seed_planning import Floats
from tests.support.folders import ADAPTER, MadeTask, make_run

TOLERANCE = 0.05
"""Percent points."""


def score_bits(
    random: np.random.Generator, seeds: int, items: int, *, seed_sd: float, own_sd: float, shift: float
) -> list[Floats]:
    """Return the bits of two methods, [seeds, items].

    ``seed_sd``: of the chance that a bit is 1, between seeds; ``own_sd``: of an item with one of the methods;
    ``shift``: how much better the second is.
    """
    item = random.normal(0.55, 0.2, items)
    sides = []
    for mean in (0.0, shift):
        chance = mean + item + random.normal(0, own_sd, items) + random.normal(0, seed_sd, (seeds, 1))
        sides.append((random.random((seeds, items)) < chance).astype(float))
    return sides


def published(folder: Path, name: str, bits: Floats) -> RowRuns:
    """Return a row of packed runs that hold these bits, as results are published."""
    views = []
    for seed, scores in enumerate(bits):
        run = make_run(
            folder / "runs" / f"{name}{seed}",
            {"cme_a": MadeTask(scores.tolist())},
            adapter=ADAPTER | {"name": name},
            identity={"adapter": f"{name}{seed}"},
        )
        packed = folder / "packed" / f"{name}{seed}"
        pack_run(run.folder, packed)
        views.append(open_run(packed))
    return RowRuns(name, name, tuple(views), views[0])


@pytest.mark.slow
def test_a_mixed_model_gives_the_same_interval(tmp_path: Path) -> None:
    """Score ~ method, with seeds, items and items by method random: all of it in one model of statsmodels.

    In these bits no variance is estimated as 0, where the two ways of estimating them part.
    """
    seeds, items = 8, 30
    sides = score_bits(np.random.default_rng(4), seeds, items, seed_sd=0.08, own_sd=0.2, shift=0.02)
    found = contrast(published(tmp_path, "a", sides[0]), published(tmp_path, "b", sides[1]), "generated")
    method, seed, item = np.meshgrid(range(2), range(seeds), range(items), indexing="ij")
    frame = pd.DataFrame(
        {
            "score": np.stack(sides).ravel(),
            "method": method.ravel(),
            "seed": (method * seeds + seed).ravel(),
            "item": item.ravel(),
            "own": (method * items + item).ravel(),
        }
    )
    random = {"seed": "0 + C(seed)", "item": "0 + C(item)", "own": "0 + C(own)"}
    model = MixedLM.from_formula("score ~ method", frame, groups=np.ones(len(frame)), vc_formula=random)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance may come out as 0
        fitted = model.fit()
    assert found.value == pytest.approx(100 * fitted.fe_params["method"], abs=TOLERANCE)
    assert found.stderr == pytest.approx(100 * fitted.bse["method"], abs=TOLERANCE)


def test_welchs_test_of_the_seeds_averages_gives_the_same_interval() -> None:
    """At the size of the real thing, where no item prefers a method: then seeds are all that is random."""
    random = np.random.default_rng(0)
    tasks = [score_bits(random, 27, 500, seed_sd=0.005, own_sd=0.0, shift=0.004) for _ in range(11)]
    first, second = zip(*tasks, strict=True)
    found = over_seeds(first, second, [1 / 11] * 11).contrast("a", "b", "generated", level=0.025)
    averages = [100 * np.mean([bits.mean(axis=1) for bits in side], axis=0) for side in (first, second)]
    tested = stats.ttest_ind(averages[1], averages[0], equal_var=False)
    outer, inner = tested.confidence_interval(0.975), tested.confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(averages[1]) - np.mean(averages[0]), abs=1e-9)
    assert (found.low, found.high) == pytest.approx((outer.low, outer.high), abs=TOLERANCE)
    assert (found.inner_low, found.inner_high) == pytest.approx((inner.low, inner.high), abs=TOLERANCE)


def test_a_paired_test_of_the_seeds_averages_gives_the_same_interval() -> None:
    """Seeds that move both methods alike, one side with more of them: those of both sides are compared."""
    random = np.random.default_rng(1)
    moves = random.normal(0, 0.02, (20, 1))
    sides: tuple[list[Floats], list[Floats]] = ([], [])
    for _ in range(11):
        item = random.normal(0.55, 0.2, 500)
        for side, shift in zip(sides, (0.0, 0.004), strict=True):
            chance = shift + item + moves + random.normal(0, 0.005, (20, 1))
            side.append((random.random((20, 500)) < chance).astype(float))
    more = [np.concatenate([bits, bits[:7]]) for bits in sides[1]]
    found = over_pairs(sides[0], more, [1 / 11] * 11).contrast("a", "b", "generated", level=0.025)
    averages = [100 * np.mean([bits.mean(axis=1) for bits in side], axis=0) for side in sides]
    tested = stats.ttest_rel(averages[1], averages[0])
    outer, inner = tested.confidence_interval(0.975), tested.confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(averages[1] - averages[0]), abs=1e-9)
    assert (found.low, found.high) == pytest.approx((outer.low, outer.high), abs=TOLERANCE)
    assert (found.inner_low, found.inner_high) == pytest.approx((inner.low, inner.high), abs=TOLERANCE)
    apart = over_seeds(*sides, [1 / 11] * 11).contrast("a", "b", "generated", level=0.025)
    assert found.stderr < 0.7 * apart.stderr, "what a seed does to both falls out"
    assert "20 pairs of seeds" in found.test
