"""Contrasts and verdicts on scores made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cme_bench.experiments.reproduce.claims import judged
from cme_bench.experiments.reproduce.contrasts import contrast
from cme_bench.experiments.reproduce.costs import costs, cut_to_fit, total_minutes
from cme_bench.experiments.reproduce.protocol import USUAL
from cme_bench.experiments.reproduce.rates import Rates
from cme_bench.experiments.reproduce.recipe import read_recipe
from cme_bench.experiments.reproduce.router_claims import by_layer
from cme_bench.experiments.reproduce.score_claims import ScoreClaim
from cme_bench.experiments.reproduce.speed_claims import speed_claim
from cme_bench.experiments.reproduce.verdicts import EQUIVALENT, FAILS, HOLDS, UNKNOWN
from cme_bench.experiments.reproduce.views import RowRuns
from cme_bench.stats.seeds import seeds_difference
from tests.support.folders import ADAPTER, MadeTask, make_run

HIGHER = ScoreClaim("b", "a", "higher", "{b} scores higher than {a}", "1 against 0")
SAME = ScoreClaim("b", "a", "same", "{b} scores as {a}", "1 against 1")


def row(folder: Path, title: str, seeds: Sequence[Sequence[float]]) -> RowRuns:
    views = tuple(
        make_run(
            folder / f"{title}{number}",
            {"cme_a": MadeTask(list(scores)), "cme_b": MadeTask(list(scores[::-1]), domain="science")},
            adapter=ADAPTER | {"name": title},
            identity={"adapter": f"{title}{number}"},
        )
        for number, scores in enumerate(seeds)
    )
    return RowRuns(title, title, views, views[0])


def test_one_seed_is_compared_item_by_item(tmp_path: Path) -> None:
    low = row(tmp_path, "low", [[0.0] * 15 + [1.0] * 5])
    high = row(tmp_path, "high", [[0.0] * 5 + [1.0] * 15])
    found = contrast(low, high, "generated")
    assert found.value == pytest.approx(50)
    assert found.low > 0
    assert found.p < 0.01
    assert found.n == 40
    assert judged(HIGHER, found, USUAL).verdict == HOLDS
    assert judged(HIGHER, contrast(high, low, "generated"), USUAL).verdict == FAILS
    assert judged(HIGHER, contrast(low, low, "generated"), USUAL).verdict == UNKNOWN


def test_several_seeds_are_random_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scores = [(random.random((3, 30)) < share).astype(float) for share in (0.4, 0.7)]
    a, b = (row(tmp_path, name, own.tolist()) for name, own in zip("ab", scores, strict=True))
    found = contrast(a, b, "generated")
    first, second = ([own, own[:, ::-1]] for own in scores)
    expected = seeds_difference(first, second, [0.5, 0.5])
    assert found.value == pytest.approx(100 * expected.estimate.value)
    assert found.stderr == pytest.approx(100 * expected.estimate.stderr)
    assert found.p == pytest.approx(expected.pvalue())
    assert "3 and 3 seeds" in found.test


def test_as_good_needs_an_interval_within_the_margin(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    many = (random.random(20_000) < 0.5).astype(float)
    flipped = many.copy()
    flipped[:20] = 1 - flipped[:20]
    same = contrast(row(tmp_path, "m", [many]), row(tmp_path, "f", [flipped]), "generated")
    assert judged(SAME, same, USUAL).verdict == HOLDS
    assert judged(HIGHER, same, USUAL).verdict == EQUIVALENT
    few = contrast(row(tmp_path, "s", [many[:30]]), row(tmp_path, "t", [1 - many[:30]]), "generated")
    assert judged(SAME, few, USUAL).verdict != HOLDS


def test_speed_holds_only_if_every_round_agrees() -> None:
    def verdict(*ratios: float) -> str:
        return speed_claim("", 0.7, list(ratios), 0.05).verdict

    assert verdict(0.7, 0.8, 0.9) == HOLDS
    assert verdict(0.7, 0.8, 1.1) == UNKNOWN
    assert verdict(1.2, 1.1) == FAILS
    assert verdict(0.96, 1.02, 1.04) == EQUIVALENT
    assert verdict(0.94, 1.02) == UNKNOWN


def test_balance_is_measured_over_layers() -> None:
    load = pd.DataFrame(
        [
            {"task": task, "group": "", "layer": layer, "expert": e, "entropy": np.log(2) / 2, "top1": top}
            for task in ("t", "u")
            for layer in ("l0", "l1")
            for e, top in enumerate((0.75, 0.25))
        ]
    )
    found = by_layer(load)
    assert found["entropy"].tolist() == pytest.approx([0.5, 0.5])
    assert found["top1"].tolist() == [0.75, 0.75]


RATES = Rates("here", "teamlora-32", 0.5, 100.0, 0.1, 60, 2.0)


def test_costs_add_up(recipe_file: Path) -> None:
    recipe = read_recipe(recipe_file, "one")
    found = {cost.kind: cost for cost in costs(recipe, RATES)}
    assert found["grid"].tokens == 6 * 2 * 100
    assert found["train"].tokens == (4 + 4 + 4 + 2) * 100
    assert found["evaluate"].items == 5 * 60
    assert found["efficiency"].minutes == 5
    assert found["evaluate"].minutes == pytest.approx((5 * 60 * 0.1 + 5 * 2) / 60)
    assert total_minutes(recipe, RATES) == pytest.approx(sum(c.minutes for c in found.values()))


def test_seeds_are_cut_before_methods(recipe_file: Path) -> None:
    from dataclasses import replace

    recipe = replace(read_recipe(recipe_file, "one"), seeds=3, side_seeds=2, budget_minutes=0.01)
    cut = cut_to_fit(recipe, RATES)
    assert (cut.seeds, cut.side_seeds) == (1, 1)
    assert cut.rows == recipe.rows
    roomy = replace(recipe, budget_minutes=total_minutes(replace(recipe, side_seeds=1), RATES))
    assert (cut_to_fit(roomy, RATES).seeds, cut_to_fit(roomy, RATES).side_seeds) == (3, 1)
