"""Reading a recipe: what scales change, what rows inherit, and every mistake by file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cme_bench.experiments.reproduce.jobs import Folder, all_jobs
from cme_bench.experiments.reproduce.recipe import read_recipe
from cme_bench.training.options import TrainOptions, check_options
from cme_bench.util.errors import UsageError

OURS = Path(__file__).resolve().parents[3] / "experiments" / "smollm2.yaml"


def test_a_scale_adds_to_the_recipe(recipe_file: Path) -> None:
    one, few = read_recipe(recipe_file, "one"), read_recipe(recipe_file, "few", seeds=3, data="hub")
    assert (one.steps, one.limit, one.seeds, few.seeds, few.data) == (4, 3, 1, 3, "hub")
    assert few.training["batch_size"] == 1
    assert few.training["max_length"] == one.training["max_length"] == 64
    assert list(few.rows) == ["moelora-32", "teamlora-32"]
    assert few.main == ("moelora-32", "teamlora-32")
    assert few.experts == {4: "teamlora-32"}


def test_rows_inherit_fields_and_the_learning_rate(recipe_file: Path) -> None:
    recipe = read_recipe(recipe_file, "one")
    half = recipe.rows["team-half"]
    assert half.training == {"method": "teamlora", "rank": 2}
    assert half.tuned_as == "teamlora-32"
    assert recipe.steps_of("team-half") == 2
    assert recipe.seeds_of("team-half") == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: tiny", "nam: tiny", r"recipe\.yaml:1: unknown key 'nam'; did you mean 'name'"),
        ("rank: 4", "rnk: 4", r"recipe\.yaml:7: row lora: unknown key 'rnk'; did you mean 'rank'"),
        ("like: teamlora-32", "like: teamlora", r"recipe\.yaml:10: row team-half is like 'teamlora'"),
        ("method: moelora, ", "", r"recipe\.yaml:8: row moelora-32 has no method"),
        ("routers: [teamlora-32]", "routers: [team]", r"recipe\.yaml:15: routers names 'team'"),
        ("both: teamlora-32", "bot: teamlora-32", r"recipe\.yaml:12: 'bot': one of neither"),
        ("batch_size: 2", "batchsize: 2", r"recipe\.yaml:4: unknown key 'batchsize'"),
        ("limit: 3", "limits: 3", r"scale one: unknown key 'limits'; did you mean 'limit'"),
        ("    steps: 4\n", "", r"steps missing \(scale one\)"),
    ],
)
def test_mistakes_name_their_place(
    changed: Callable[[str, str], Path], old: str, new: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        read_recipe(changed(old, new), "one")


def test_an_unknown_scale_names_the_known_ones(recipe_file: Path) -> None:
    with pytest.raises(UsageError, match=r"no scale 'on'; did you mean 'one'\? \(has: few, one\)"):
        read_recipe(recipe_file, "on")


def test_jobs_come_after_what_they_need_and_have_names_of_their_own(recipe_file: Path) -> None:
    for recipe in (read_recipe(recipe_file, "one"), read_recipe(recipe_file, "few")):
        jobs = all_jobs(recipe)
        names = [job.name for job in jobs]
        assert len(set(names)) == len(names)
        for place, job in enumerate(jobs):
            assert set(job.needs) <= set(names[:place])
    kinds = [job.kind for job in all_jobs(read_recipe(recipe_file, "one"))]
    assert (kinds.count("grid"), kinds.count("train"), kinds.count("router")) == (6, 4, 1)
    few = [job.name for job in all_jobs(read_recipe(recipe_file, "few"))]
    assert not any(name.startswith("grid") for name in few), "one learning rate needs no grid"
    assert "train-teamlora-32-seed1" in few


def test_a_folder_of_another_recipe_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "out")
    folder.open(read_recipe(recipe_file, "few"))
    folder.open(read_recipe(recipe_file, "few", seeds=5, workers=3))
    with pytest.raises(UsageError, match="results of another recipe"):
        folder.open(read_recipe(recipe_file, "one"))


@pytest.mark.parametrize(
    "scale",
    [
        "verdict",
        "fidelity-experts",
        "fidelity-rank",
        "fidelity-settings",
        "fidelity-epoch",
        "headline",
        "full",
        "hour",
        "cpu",
        "quick",
        "smoke",
    ],
)
def test_our_recipe_is_sound(scale: str, tmp_path: Path) -> None:
    recipe = read_recipe(OURS, scale)
    for name, row in recipe.rows.items():
        fields = {**recipe.training, **row.training}
        check_options(TrainOptions(model="smollm2", out=tmp_path / name, **fields))
    if not scale.startswith(("fidelity", "headline")):
        assert set(recipe.ablation) == {"neither", "collaboration", "competition", "both"}


def test_our_recipe_trains_the_papers_methods() -> None:
    main = read_recipe(OURS, "full").main
    assert [name.rpartition("-")[0] for name in main] == (
        "lora lora adalora moslora moelora hydralora teamlora teamlora".split()
    )


SWEEP = """\
  ranks:
    rows:
      teamlora-8: {title: Team-8, method: teamlora, rank: 8}
      teamlora-8-k2: {title: "Team-8, 2", like: teamlora-8, experts: 2}
    only: [teamlora-32, teamlora-8, teamlora-8-k2]
    routers: []
    sweeps: {rank: {2: teamlora-32, 8: teamlora-8}, other: {1: lora}}
    steps: 2
    grid_steps: 2
    learning_rates: [1.0e-3]
"""


def test_a_scale_may_have_rows_and_sweeps_of_its_own(recipe_file: Path) -> None:
    recipe_file.write_text(recipe_file.read_text() + SWEEP)
    recipe = read_recipe(recipe_file, "ranks")
    assert list(recipe.rows) == ["teamlora-32", "teamlora-8", "teamlora-8-k2"]
    assert recipe.rows["teamlora-8-k2"].tuned_as == "teamlora-8"
    assert recipe.sweeps == {"rank": {2: "teamlora-32", 8: "teamlora-8"}, "other": {}}
    assert "teamlora-8" not in read_recipe(recipe_file, "one").rows, "other scales do not know them"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("2: teamlora-32, 8: teamlora-8}", "2: teamlora-32}, more: [1]", "sweep .more. is no mapping"),
        (
            "method: teamlora, rank: 8",
            "method: teamlora, rnk: 8",
            r"recipe\.yaml:\d+: row teamlora-8: unknown",
        ),
        ("2: teamlora-32, 8:", "2: teamlora-3, 8:", "sweeps names 'teamlora-3', which is no row"),
    ],
)
def test_mistakes_in_rows_and_sweeps_of_a_scale_name_their_place(
    recipe_file: Path, old: str, new: str, said: str
) -> None:
    assert old in SWEEP
    recipe_file.write_text(recipe_file.read_text() + SWEEP.replace(old, new))
    with pytest.raises(UsageError, match=said):
        read_recipe(recipe_file, "ranks")
