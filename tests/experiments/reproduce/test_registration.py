"""Who may be called pre-registered: the recipe, its file, its commit, and what came first."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from cme_bench.experiments.reproduce.jobs import Folder
from cme_bench.experiments.reproduce.recipe import Recipe, read_recipe
from cme_bench.experiments.reproduce.registration import (
    Registration,
    check_registration,
    hash_of,
    register,
    registered_part,
    registration_file,
)
from cme_bench.experiments.reproduce.stages import staged
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json, write_json

PROTOCOL = """\
  plan:
    only: [moelora-32, teamlora-32]
    steps: 7
    grid_steps: 2
    learning_rates: [1.0e-3]
    workers: 2
    protocol: {headline: [teamlora-32, moelora-32], margin: 0.5, first_seeds: 3, cap: 5}
"""

OURS = Path(__file__).resolve().parents[3] / "experiments" / "smollm2.yaml"


@pytest.fixture
def plan(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a protocol, in a repository of its own."""
    monkeypatch.delenv("CME_BENCH_COMMIT", raising=False)
    recipe_file.write_text(recipe_file.read_text() + PROTOCOL)
    git(recipe_file.parent, "init", "-q")
    return recipe_file


def git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", *identity, *command], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(file: Path) -> str:
    git(file.parent, "add", file.name)
    git(file.parent, "commit", "-q", "-m", "Register")
    return git(file.parent, "rev-parse", "--short=12", "HEAD")


def checked(recipe: Recipe, out: Path, *, scored: bool = False) -> Registration:
    out.mkdir(exist_ok=True)
    found = check_registration(recipe, Folder(out), scored=scored)
    assert found is not None
    return found


def edited(file: Path, old: str, new: str) -> Recipe:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return read_recipe(file, "plan")


def test_a_committed_registration_of_the_same_recipe_counts(plan: Path, tmp_path: Path) -> None:
    recipe = read_recipe(plan, "plan")
    where = commit(register(recipe))
    found = checked(recipe, tmp_path / "out")
    assert found.holds and found.commit == where
    assert found.sha256 == read_json(registration_file(recipe))["sha256"] == hash_of(registered_part(recipe))
    assert checked(recipe, tmp_path / "out", scored=True).holds, "as it was found before the first score"
    assert "sha256 " + found.sha256[:16] in found.sentence()


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("margin: 0.5", "margin: 1.5", "protocol"),
        ("steps: 7", "steps: 8", "steps"),
        ("max_length: 64", "max_length: 65", "training"),
        ("tasks: cme_emotion,cme_rte_ll", "tasks: cme_emotion,cme_snli_ll", "tasks, task_hashes"),
        ("{title: Team, method: teamlora, rank: 2}", "{title: Team, method: teamlora, rank: 3}", "rows"),
        ("data: mini", "data: hub", "rows_of"),
    ],
)
def test_a_recipe_that_changed_since_does_not_count(
    plan: Path, tmp_path: Path, old: str, new: str, key: str
) -> None:
    commit(register(read_recipe(plan, "plan")))
    found = checked(edited(plan, old, new), tmp_path / "out")
    assert not found.holds and f"since the registration {key}" in found.problem
    assert "NOT pre-registered" in found.sentence()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("workers: 2", "workers: 5\n    engine: vllm"),
        ("title: Team,", 'title: "Our team",'),
        ("log_every: 1", "log_every: 9"),
    ],
)
def test_how_the_work_is_spread_and_what_rows_are_called_may_change(
    plan: Path, tmp_path: Path, old: str, new: str
) -> None:
    commit(register(read_recipe(plan, "plan")))
    assert checked(edited(plan, old, new), tmp_path / "out").holds


def test_a_recipe_that_changes_during_the_run_never_counts_again(plan: Path, tmp_path: Path) -> None:
    recipe = read_recipe(plan, "plan")
    commit(register(recipe))
    assert checked(recipe, tmp_path / "out").holds
    other = edited(plan, "margin: 0.5", "margin: 0.9")
    assert "changed after the run began" in checked(other, tmp_path / "out").problem
    back = edited(plan, "margin: 0.9", "margin: 0.5")
    assert not checked(back, tmp_path / "out").holds


def test_what_is_not_committed_before_the_first_score_does_not_count(plan: Path, tmp_path: Path) -> None:
    recipe = read_recipe(plan, "plan")
    assert "is not there" in checked(recipe, tmp_path / "none").problem
    file = register(recipe)
    assert "is not committed" in checked(recipe, tmp_path / "loose").problem
    commit(file)
    assert not checked(recipe, tmp_path / "loose").holds, "found too late for this folder"
    assert "scores were there before" in checked(recipe, tmp_path / "scored", scored=True).problem
    held = read_json(file)
    write_json(file, held | {"note": "edited"})
    assert "is not committed as it is" in checked(recipe, tmp_path / "dirty").problem


def test_an_edited_registration_is_seen_through(plan: Path, tmp_path: Path) -> None:
    recipe = read_recipe(plan, "plan")
    file = register(recipe)
    held = read_json(file)
    held["registered"]["protocol"]["margin"] = 2.0
    write_json(file, held)
    commit(file)
    assert "was edited" in checked(recipe, tmp_path / "out").problem


def test_source_without_its_history_names_the_commit(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(plan, "plan")
    register(recipe)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert "no history" in checked(recipe, tmp_path / "a").problem
    monkeypatch.setenv("CME_BENCH_COMMIT", "0123456789ab")
    found = checked(recipe, tmp_path / "b")
    assert (found.holds, found.commit) == (True, "0123456789ab")


def test_a_registration_is_not_replaced(plan: Path) -> None:
    file = register(read_recipe(plan, "plan"))
    assert register(read_recipe(plan, "plan")) == file, "the same plan again is no change"
    with pytest.raises(UsageError, match=r"registered already, and protocol changed; .* another scale"):
        register(edited(plan, "margin: 0.5", "margin: 0.6"))
    with pytest.raises(UsageError, match="scale few has no protocol"):
        register(read_recipe(plan, "few"))


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("{headline: [teamlora-32]}", r"recipe\.yaml:\d+: protocol: headline must be two rows"),
        ("{headline: [teamlora-32, teamlora-32]}", "headline must be two rows"),
        ("{headline: [teamlora-32, moelora-3]}", "headline names 'moelora-3'; did you mean 'moelora-32'"),
        ("{headline: [teamlora-32, lora]}", "headline names 'lora'"),
        ("{headline: [teamlora-32, moelora-32], margins: 1}", "unknown key 'margins'; did you mean 'margin'"),
        ("{headline: [teamlora-32, moelora-32], margin: 0}", "margin must be a number above 0"),
        ("{headline: [teamlora-32, moelora-32], headline_mde: -1}", "headline_mde must be a number above 0"),
        ("{headline: [teamlora-32, moelora-32], level: 5}", "level must lie between 0 and 1"),
        ("{headline: [teamlora-32, moelora-32], first_seeds: 1}", "first_seeds must be a whole number of 2"),
        ("{headline: [teamlora-32, moelora-32], cap: 4}", r"cap \(4\) lies below first_seeds \(10\)"),
        ("{headline: [teamlora-32, moelora-32], correction: holm}", "correction 'holm' is none of"),
        ("{headline: [teamlora-32, moelora-32], others_cap: 1}", "others_cap must be a whole number of 2"),
        ("{headline: [teamlora-32, moelora-32], others_cap: 4}", r"others_cap \(4\) lies below first_seeds"),
        ("{headline: [teamlora-32, moelora-32], pairing: items}", "pairing 'items' is none of seeds, none"),
        ("{headline: [teamlora-32, moelora-32], margin: .nan}", "margin must be a number above 0, not nan"),
        ("{headline: [teamlora-32, moelora-32], mde: .inf}", "mde must be a number above 0, not inf"),
        ("{headline: [teamlora-32, moelora-32], stopping: 3}", "stopping must be a text"),
        ("[1, 2]", "'protocol' must be a mapping"),
    ],
)
def test_mistakes_of_a_protocol_name_their_place(plan: Path, new: str, said: str) -> None:
    old = "{headline: [teamlora-32, moelora-32], margin: 0.5, first_seeds: 3, cap: 5}"
    with pytest.raises(UsageError, match=said):
        edited(plan, old, new)


def test_records_that_were_cut_are_named(plan: Path, tmp_path: Path) -> None:
    recipe = read_recipe(plan, "plan")
    (tmp_path / "out").mkdir()
    write_json(tmp_path / "out" / "registration.json", {"sha256": "0"})
    with pytest.raises(UsageError, match=r"registration\.json: commit, pre_registered, problem missing"):
        checked(recipe, tmp_path / "out")
    write_json(tmp_path / "out" / "stage.json", {"headline": 900, "others": 3})
    with pytest.raises(UsageError, match=r"stage\.json: headline and others must be seeds from 2 to 5"):
        staged(recipe, Folder(tmp_path / "out"))


def test_a_rule_for_a_form_that_is_not_asked_is_refused(plan: Path) -> None:
    recipe = edited(plan, "tasks: cme_emotion,cme_rte_ll", "tasks: cme_emotion")
    with pytest.raises(UsageError, match="others_form likelihood: the tasks cme_emotion have none"):
        register(recipe)


def test_seeds_are_the_protocols(plan: Path) -> None:
    with pytest.raises(UsageError, match="leave seeds out"):
        read_recipe(plan, "plan", seeds=4)
    assert read_recipe(plan, "plan").seeds_of("teamlora-32") == 3


def test_our_registration_is_that_of_our_recipe(shared_data: Path) -> None:
    recipe = read_recipe(OURS, "verdict", data=str(shared_data))
    held = read_json(registration_file(recipe))
    assert held["registered"] == json.loads(json.dumps(registered_part(recipe)))
    assert held["sha256"] == hash_of(registered_part(recipe))
