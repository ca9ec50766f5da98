"""The second stage: how many seeds, from spreads alone, at which level, and that its order is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cme_bench.experiments.reproduce.claim import Drawn, PaperClaim
from cme_bench.experiments.reproduce.claims import paper_numbers
from cme_bench.experiments.reproduce.costs import costs, plan_text, total_minutes
from cme_bench.experiments.reproduce.forest import forest_frame, write_forest
from cme_bench.experiments.reproduce.jobs import Folder, all_jobs
from cme_bench.experiments.reproduce.protocol import Protocol
from cme_bench.experiments.reproduce.rates import Rates
from cme_bench.experiments.reproduce.recipe import Recipe, read_recipe
from cme_bench.experiments.reproduce.score_claims import asked_forms, family, family_sizes, score_claims
from cme_bench.experiments.reproduce.stages import (
    FormSpread,
    decide,
    second_stage,
    spreads_of,
    staged,
    with_seeds,
)
from cme_bench.experiments.reproduce.verdicts import EQUIVALENT, UNKNOWN
from cme_bench.experiments.reproduce.views import RowRuns
from cme_bench.stats.seed_planning import Spread, seeds_for
from cme_bench.util.files import write_json
from tests.support.folders import ADAPTER, MadeTask, make_run

OURS = Path(__file__).resolve().parents[3] / "experiments" / "smollm2.yaml"
PAIR = ("teamlora-32", "moelora-32")
PROTOCOL = Protocol(headline=PAIR, margin=0.5, correction="bonferroni", first_seeds=4, cap=60)


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return replace(read_recipe(recipe_file, "one"), protocol=PROTOCOL)


def spread(between: float) -> FormSpread:
    return FormSpread(Spread(between, 0.09, 0.001), Spread(between, 0.09, 0.004))


def test_each_part_of_the_rule_asks_for_its_seeds(recipe: Recipe) -> None:
    found = {"generated": spread(0.24), "likelihood": spread(0.08)}
    stage = decide(recipe, found)
    assert stage.wanted == {
        "headline, generated": seeds_for(found["generated"].headline, 0.5, level=0.025, first=4),
        "headline, likelihood": seeds_for(found["likelihood"].headline, 0.5, level=0.025, first=4),
        "others": seeds_for(found["likelihood"].all_rows, 0.5, level=0.05, first=4),
    }
    assert stage.headline == stage.wanted["headline, generated"]
    assert stage.others == stage.wanted["others"]
    assert not stage.capped
    finer = decide(replace(recipe, protocol=replace(PROTOCOL, headline_mde=0.4, cap=200)), found)
    finer_pair = seeds_for(found["likelihood"].headline, 0.4, level=0.025, first=4)
    assert finer.wanted == stage.wanted | {
        "headline, generated": seeds_for(found["generated"].headline, 0.4, level=0.025, first=4),
        "headline, likelihood": finer_pair,
    }
    assert finer_pair is not None and stage.others < finer_pair < finer.headline
    small = decide(replace(recipe, protocol=replace(PROTOCOL, cap=8)), found)
    assert (small.headline, small.capped) == (8, True)
    nothing = FormSpread(Spread(0, 0.01, 0), Spread(0, 0.01, 0))
    none = decide(recipe, {"generated": nothing, "likelihood": nothing})
    assert none.headline == none.others == 4, "never fewer than the first stage"


def test_seeds_of_the_second_stage_are_jobs(recipe: Recipe, tmp_path: Path) -> None:
    seeds = {"moelora-32": 6, "teamlora-32": 6, "lora": 5, "team-half": 5}
    second = with_seeds(recipe, 6, 5)
    assert {name: second.seeds_of(name) for name in second.rows} == seeds
    assert {name: recipe.seeds_of(name) for name in recipe.rows} == dict.fromkeys(seeds, 4)
    trainings = [job for job in all_jobs(second) if job.kind == "train"]
    assert len(trainings) == sum(seeds.values())
    folder = Folder(tmp_path)
    assert staged(recipe, folder) == recipe
    assert second_stage(recipe, folder) is None, "the first stage is not done"
    write_json(tmp_path / "stage.json", {"headline": 6, "others": 5})
    assert staged(recipe, folder) == second
    assert second_stage(recipe, folder) is None, "decided once"


def rows(folder: Path, shift: float) -> list[RowRuns]:
    """Two rows of four seeds in one task of shares, the second higher by ``shift`` everywhere."""
    random = np.random.default_rng(0)
    item = random.normal(0.5, 0.1, 30)
    found = []
    for number, name in enumerate(("moelora-32", "teamlora-32")):
        scores = item + random.normal(0, 0.02, (4, 1)) + random.normal(0, 0.05, (4, 30)) + number * shift
        views = tuple(
            make_run(
                folder / f"{name}{seed}",
                {"cme_squad": MadeTask(own.tolist(), metric="f1")},
                adapter=ADAPTER | {"name": name},
                identity={"adapter": f"{name}{seed}"},
            )
            for seed, own in enumerate(scores)
        )
        found.append(RowRuns(name, name, views, views[0]))
    return found


def test_the_decision_is_the_same_whoever_is_better(tmp_path: Path) -> None:
    given = [rows(tmp_path / str(shift), shift) for shift in (-0.3, 0.0, 0.3)]
    found = [spreads_of(each, PROTOCOL)["generated"] for each in given]
    assert found[0].headline.between > 0
    for other in found[1:]:
        assert other.headline.between == pytest.approx(found[0].headline.between)
        assert other.headline.residual == pytest.approx(found[0].headline.residual)
        assert other.all_rows.interaction == pytest.approx(found[0].all_rows.interaction, abs=1e-9)


def test_a_difference_counts_once_however_many_claims_rest_on_it() -> None:
    recipe = read_recipe(OURS, "verdict")
    claims = score_claims(recipe, paper_numbers())
    assert asked_forms(recipe) == 2
    assert [family(claim, recipe.analysis) for claim in claims].count("primary") == 2, "with the ablation"
    assert family_sizes(claims, recipe.analysis, 2) == {"primary": 2, "secondary": 8}
    assert recipe.analysis.level_of(2) == pytest.approx(0.025)
    assert replace(recipe.analysis, correction="none").level_of(8) == 0.05


def test_trainings_of_one_process_are_counted_together(recipe: Recipe, tmp_path: Path) -> None:
    alone = replace(recipe, protocol=None)
    many = replace(alone, together=4)
    one = Rates("here", "teamlora-32", 0.5, 100.0, 0.1, 60, 2.0)
    four = replace(one, step_seconds=0.8, together=4)
    found = {cost.kind: cost for cost in costs(many, four)}
    assert (found["grid"].jobs, found["grid"].bundles) == (6, 2)
    assert (found["train"].jobs, found["train"].bundles) == (4, 1)
    assert found["train"].minutes == pytest.approx((14 * 0.8 / 4 + 2.0) / 60)
    assert total_minutes(many, four) < total_minutes(alone, one)
    text = plan_text(with_seeds(replace(recipe, together=4), 6, 5), four, Folder(tmp_path))
    assert "Both stages are counted" in text and "4 trainings at once" in text
    first = plan_text(replace(recipe, together=4), four, Folder(tmp_path))
    assert "Counted is the first stage, 4 seeds a row; with the cap of 60 seeds a row it would be" in first


def test_the_forest_has_every_claim_with_an_interval(recipe: Recipe, tmp_path: Path) -> None:
    claims = [
        PaperClaim("A", "1", "2", EQUIVALENT, drawn=Drawn("points", 0.1, -0.2, 0.4, 0.6), family="primary"),
        PaperClaim("B", "1", "2", UNKNOWN, drawn=Drawn("times", 0.9, 0.8, 1.1, 0.7)),
        PaperClaim("C", "1", "2", UNKNOWN),
    ]
    frame = forest_frame(recipe, claims)
    assert frame["claim"].tolist() == ["A", "B"]
    assert frame["margin"].tolist() == [0.5, 0.05]
    drawn = frame[["value", "low", "high", "paper"]].to_numpy().tolist()
    assert drawn == [[0.1, -0.2, 0.4, 0.6], [0.9, 0.8, 1.1, 0.7]]
    assert list(write_forest(recipe, claims, tmp_path / "figures", said="x")) == ["forest: png, pdf, csv"]
    once = (tmp_path / "figures" / "forest.pdf").read_bytes()
    list(write_forest(recipe, claims, tmp_path / "figures", said="x"))
    assert (tmp_path / "figures" / "forest.pdf").read_bytes() == once
    assert not list(write_forest(recipe, claims[2:], tmp_path / "none", said=""))
