"""The second stage: how many seeds, from spreads alone, at which level, and that its order is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cme_bench.experiments.reproduce.claim import Drawn, PaperClaim
from cme_bench.experiments.reproduce.claims import paper_numbers
from cme_bench.experiments.reproduce.contrasts import in_points, row_scores, seed_differences
from cme_bench.experiments.reproduce.costs import costs, plan_text, total_minutes
from cme_bench.experiments.reproduce.forest import forest_frame, write_forest
from cme_bench.experiments.reproduce.jobs import Folder, all_jobs
from cme_bench.experiments.reproduce.protocol import Protocol
from cme_bench.experiments.reproduce.rates import Rates
from cme_bench.experiments.reproduce.recipe import Recipe, read_recipe
from cme_bench.experiments.reproduce.score_claims import asked_forms, family, family_sizes, score_claims
from cme_bench.experiments.reproduce.stages import (
    Stage,
    decide_headline,
    decide_others,
    decided,
    headline_done,
    next_stage,
    spreads_of,
    staged,
    undecided,
    with_seeds,
)
from cme_bench.experiments.reproduce.verdicts import EQUIVALENT, UNKNOWN
from cme_bench.experiments.reproduce.views import RowRuns
from cme_bench.stats.seed_planning import CentredScores, Spread, paired_spread, seeds_for
from cme_bench.util.files import write_json
from tests.support.folders import ADAPTER, MadeTask, make_run

OURS = Path(__file__).resolve().parents[3] / "experiments" / "smollm2.yaml"
PAIR = ("teamlora-32", "moelora-32")
PROTOCOL = Protocol(headline=PAIR, margin=0.5, correction="bonferroni", first_seeds=4, cap=60)


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return replace(read_recipe(recipe_file, "one"), protocol=PROTOCOL)


def spread(between: float) -> Spread:
    return Spread(between, 0.09, 0.004)


def test_each_part_of_the_rule_asks_for_its_seeds(recipe: Recipe) -> None:
    found = {"generated": spread(0.24), "likelihood": spread(0.08)}
    stage = decide_headline(recipe, found)
    assert stage.wanted == {
        "headline, generated": seeds_for(found["generated"], 0.5, level=0.025, first=4),
        "headline, likelihood": seeds_for(found["likelihood"], 0.5, level=0.025, first=4),
    }
    assert stage.headline == stage.wanted["headline, generated"]
    assert stage.others is None and not stage.capped
    finer = decide_headline(replace(recipe, protocol=replace(PROTOCOL, headline_mde=0.4, cap=200)), found)
    finer_pair = seeds_for(found["likelihood"], 0.4, level=0.025, first=4)
    assert finer.wanted == {
        "headline, generated": seeds_for(found["generated"], 0.4, level=0.025, first=4),
        "headline, likelihood": finer_pair,
    }
    assert finer_pair is not None and finer_pair < finer.headline
    small = decide_headline(replace(recipe, protocol=replace(PROTOCOL, cap=8)), found)
    assert (small.headline, small.capped) == (8, True)
    nothing = {form: Spread(0, 0.01, 0) for form in found}
    assert decide_headline(recipe, nothing).headline == 4, "never fewer than the first stage"
    alone = recipe.of_rows(PAIR)
    assert decide_headline(alone, nothing).others == 4, "no other rows, nothing left to decide"


def test_other_rows_get_seeds_for_their_form_at_the_level_of_one_claim(recipe: Recipe) -> None:
    found = {"generated": spread(0.9), "likelihood": spread(0.08)}
    before = Stage(9, None, {"headline, generated": 9}, {"headline, generated": {"between": 0.1}})
    stage = decide_others(recipe, found, before)
    asked = seeds_for(found["likelihood"], 0.5, level=0.05, first=4)
    assert (stage.headline, stage.others) == (9, asked)
    assert stage.wanted == before.wanted | {"others": asked}
    assert stage.spreads.keys() == {"headline, generated", "others"}
    small = decide_others(replace(recipe, protocol=replace(PROTOCOL, others_cap=8)), found, before)
    assert (small.headline, small.others, small.capped) == (9, 8, True)


def finish(recipe: Recipe, folder: Folder) -> None:
    for job in all_jobs(recipe):
        folder.finish(job.name, {})


def seeds(recipe: Recipe) -> dict[str, int]:
    return {name: recipe.seeds_of(name) for name in recipe.rows}


def test_the_headlines_stages_come_before_all_other_rows(recipe: Recipe, tmp_path: Path) -> None:
    folder, stage = Folder(tmp_path), tmp_path / "stage.json"
    (tmp_path / "jobs").mkdir()
    pair, others = dict.fromkeys(PAIR, 4), dict.fromkeys(("lora", "team-half"), 0)
    assert staged(recipe, folder) == recipe and seeds(recipe) == pair | others
    assert undecided(recipe, folder) and not headline_done(recipe, folder)
    assert {job.row for job in all_jobs(recipe) if not job.alone} == {*PAIR, "base"}
    assert next_stage(recipe, folder) is None, "the first stage is not done"

    write_json(stage, {"headline": 6, "others": None})
    second = staged(recipe, folder)
    assert second == with_seeds(recipe, 6, 0) and seeds(second) == dict.fromkeys(PAIR, 6) | others
    assert undecided(second, folder) and not headline_done(second, folder)
    finish(second.of_rows(PAIR), folder)
    third = staged(recipe, folder)
    assert third == with_seeds(recipe, 6, 4) and headline_done(third, folder)
    assert {job.row for job in all_jobs(third) if job.kind == "grid"} == {"lora", *PAIR}
    assert next_stage(third, folder) is None, "the first stage of other rows is not done"

    write_json(stage, {"headline": 6, "others": 5})
    last = staged(recipe, folder)
    assert seeds(last) == {"lora": 5, "moelora-32": 6, "teamlora-32": 6, "team-half": 5}
    assert len([job for job in all_jobs(last) if job.kind == "train"]) == 22
    assert not undecided(last, folder)
    finish(last, folder)
    assert next_stage(last, folder) is None, "decided once"
    found = decided(recipe, folder)
    assert found is not None and (found.headline, found.others) == (6, 5)


def test_a_row_outside_the_headline_may_be_asked_less(recipe: Recipe) -> None:
    less = replace(recipe, side_tasks="cme_rte_ll")
    asked = {name: less.tasks_of(name) for name in (*less.rows, "base")}
    assert asked == dict.fromkeys(asked, recipe.tasks) | {"lora": "cme_rte_ll", "team-half": "cme_rte_ll"}
    assert less.identity() == recipe.identity() | {"side_tasks": "cme_rte_ll"}
    rates = Rates("here", "teamlora-32", 0.5, 100.0, 0.1, 60, 2.0, side_items=20)
    found = {cost.kind: cost for cost in costs(with_seeds(less, 6, 5), rates)}
    assert found["evaluate"].items == 60 * (1 + 2 * 6) + 20 * 2 * 5


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
    found = [spreads_of(each)["generated"] for each in given]
    assert found[0].between > 0
    for other in found[1:]:
        assert other.between == pytest.approx(found[0].between)
        assert other.residual == pytest.approx(found[0].residual)
        assert other.interaction == pytest.approx(found[0].interaction, abs=1e-9)


def test_pairs_of_the_claims_are_compared_seed_by_seed(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The headline's pair first; of all rows then those that secondary claims compare."""
    paired = replace(recipe, protocol=replace(PROTOCOL, pairing="seeds"))
    seen: list[list[str]] = []

    def open_made(_: Recipe, folder: Folder, names: Sequence[str], *, pool: bool) -> list[RowRuns]:
        seen.append(list(names))
        return rows(folder.path / f"made{len(seen)}", 0.1)

    monkeypatch.setattr("cme_bench.experiments.reproduce.stages.open_rows", open_made)
    folder = Folder(tmp_path)
    (tmp_path / "jobs").mkdir()
    finish(paired, folder)
    stage = next_stage(paired, folder)
    assert stage is not None and stage.spreads["headline, generated"]["paired"] is True
    assert seen == [["teamlora-32", "moelora-32"]]
    assert decided(paired, folder) == stage
    (first, second), weights = row_scores(rows(tmp_path / "same", 0.1), "generated")
    own = paired_spread([CentredScores(seed_differences(first, second))], weights)
    asked = seeds_for(in_points(own), 0.5, level=0.05 / 2, first=4, cap=60)
    assert stage.wanted == {"headline, generated": asked}


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
    assert (found["train"].jobs, found["train"].bundles) == (4, 2)  # one has half the steps
    assert found["train"].minutes == pytest.approx((14 * 0.8 / 4 + 2 * 2.0) / 60)
    assert total_minutes(many, four) < total_minutes(alone, one)
    text = plan_text(with_seeds(replace(recipe, together=4), 6, 5), four, Folder(tmp_path))
    assert "6 seeds of the headline's rows and 5 of others" in text and "4 trainings at once" in text
    first = plan_text(replace(recipe, together=4), four, Folder(tmp_path))
    assert "4 seeds of the headline's rows and 0 of others, as decided so far" in first
    assert "With at least 4 seeds a row it is" in first and "with the cap of 60" in first


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
