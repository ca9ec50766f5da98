"""What travels: units of whole rows in files that only grow in number, and survive a copy while written."""

from __future__ import annotations

import random
import shutil
import tarfile
from pathlib import Path

import pytest

from cme_bench.experiments.reproduce.jobs import Folder, all_jobs
from cme_bench.experiments.reproduce.publish import publish_runs
from cme_bench.experiments.reproduce.recipe import Recipe, read_recipe
from cme_bench.experiments.reproduce.state import State
from cme_bench.runs.pack import pack_run
from cme_bench.util.errors import CmeError, UsageError
from tests.support.folders import MadeTask, make_run

ROOM = 14_000
"""Bytes of a file here: room for one or two units."""


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return read_recipe(recipe_file, "few", seeds=4)


@pytest.fixture
def folder(recipe: Recipe, tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "out")
    made.open(recipe)
    return made


def finish(recipe: Recipe, folder: Folder, seed: int) -> None:
    """Make up what trainings and evaluations of one seed leave."""
    for job in (job for job in all_jobs(recipe) if job.seed == seed):
        packed = folder.packed(job.row, job.seed)
        packed.mkdir(parents=True, exist_ok=True)
        (packed / "scores.json").write_text(random.Random(job.name).randbytes(1000).hex())
        folder.finish(job.name, {"job": job.name, "seconds": 1.0})


def carried(parts: Path, there: Path) -> dict[str, bytes]:
    """Return what a new folder gets of the parts."""
    there.mkdir()
    assert State(parts).unpack(Folder(there))
    return {str(file.relative_to(there)): file.read_bytes() for file in there.rglob("*") if file.is_file()}


def contents(parts: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in parts.iterdir()}


def test_what_came_from_elsewhere_is_never_written_again(
    recipe: Recipe, folder: Folder, tmp_path: Path
) -> None:
    """So a repository that keeps the state grows by what is new."""
    parts = tmp_path / "parts"
    finish(recipe, folder, 0)
    State(parts).pack(recipe, folder)
    first = contents(parts)
    assert first.keys() == {"state-head.tar.xz", "state-000.tar.xz"}

    there = Folder(tmp_path / "there")
    there.path.mkdir()
    state = State(parts)
    assert state.unpack(there)
    state.pack(recipe, there)
    assert contents(parts) == first, "nothing is new"
    finish(recipe, there, 1)
    state.pack(recipe, there)
    second = contents(parts)
    assert second.keys() - first.keys() == {"state-001.tar.xz"}
    assert {name: second[name] for name in first} == first
    names = carried(parts, tmp_path / "again")
    assert {f"packed/{row}-seed{n}/scores.json" for row in recipe.rows for n in (0, 1)} <= names.keys()

    # a second call in the same folder knows what is stored, and adds to it
    state = State(parts)
    assert not state.unpack(there), "a folder with results is left alone"
    state.pack(recipe, there)
    assert contents(parts) == second
    finish(recipe, there, 2)
    state.pack(recipe, there)
    assert contents(parts).keys() - second.keys() == {"state-002.tar.xz"}


def test_a_unit_is_read_once(recipe: Recipe, folder: Folder, tmp_path: Path) -> None:
    finish(recipe, folder, 0)
    state, parts = State(tmp_path / "parts"), tmp_path / "parts"
    state.pack(recipe, folder)
    shutil.rmtree(folder.path / "packed")
    finish(recipe, folder, 1)
    state.pack(recipe, folder)
    names = carried(parts, tmp_path / "there")
    assert {f"packed/{row}-seed{n}/scores.json" for row in recipe.rows for n in (0, 1)} <= names.keys()


def test_a_copy_made_while_it_was_written_lacks_whole_units_at_worst(
    recipe: Recipe, folder: Folder, tmp_path: Path
) -> None:
    state, copies = State(tmp_path / "parts", room=ROOM), []
    for seed in range(4):
        finish(recipe, folder, seed)
        state.pack(recipe, folder)
        copies.append(shutil.copytree(tmp_path / "parts", tmp_path / f"copy{seed}"))
    assert len(list(copies[3].iterdir())) > 3, "else nothing is torn"
    for number, file in enumerate(sorted(copies[2].iterdir())):
        torn = shutil.copytree(copies[3], tmp_path / f"torn{number}")
        shutil.copy(file, torn / file.name)  # this one as it was a minute before
        found = carried(torn, tmp_path / f"there{number}")
        for job in all_jobs(recipe):
            here = folder.packed(job.row, job.seed) / "scores.json"
            marked = f"jobs/{job.name}.json" in found
            scores = found.get(str(here.relative_to(folder.path)))
            assert scores == (here.read_bytes() if marked else None), job.name


def test_what_units_have_in_common_is_stored_once(recipe: Recipe, folder: Folder, tmp_path: Path) -> None:
    """Right answers of 500 items a task are most of a run, and the same in all."""
    common = random.Random("gold").randbytes(20_000).hex()
    for seed in range(4):
        finish(recipe, folder, seed)
    for file in folder.path.glob("packed/*/scores.json"):
        file.write_text(file.read_text() + common)
    (_, file) = State(tmp_path / "parts").pack(recipe, folder)
    assert file.stat().st_size < 2 * 20_000 + 9 * 1_000


def test_a_file_that_was_cut_is_refused(recipe: Recipe, folder: Folder, tmp_path: Path) -> None:
    finish(recipe, folder, 0)
    for file in State(tmp_path / "parts").pack(recipe, folder):
        whole = file.read_bytes()
        for content in (whole[:-5], whole[: len(whole) // 2], b"\0" * 40, b""):
            file.write_bytes(content)
            there = tmp_path / f"there{len(content)}{file.name}"
            there.mkdir()
            with pytest.raises(UsageError, match=rf"{file.name}: this part of the state is damaged"):
                State(tmp_path / "parts").unpack(Folder(there))
        file.write_bytes(whole)


def test_a_unit_without_room_is_refused(
    recipe: Recipe, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cme_bench.experiments.reproduce.state.FILE_BYTES", 500)
    finish(recipe, folder, 0)
    with pytest.raises(CmeError, match=r"state-000\.tar\.xz has .* bytes, more than 500"):
        State(tmp_path / "parts").pack(recipe, folder)


def test_the_state_of_another_recipe_is_left_alone(
    recipe: Recipe, folder: Folder, recipe_file: Path, tmp_path: Path
) -> None:
    finish(recipe, folder, 0)
    State(tmp_path / "parts").pack(recipe, folder)
    other, there = read_recipe(recipe_file, "one"), Folder(tmp_path / "there")
    there.open(other)
    finish(other, there, 0)
    with pytest.raises(UsageError, match=r"parts is the state of another recipe than .*there"):
        State(tmp_path / "parts").unpack(there)


def test_a_place_for_it_that_is_no_folder_is_refused_at_the_start(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--state .*file: cannot be written"):
        State(tmp_path / "file").unpack(folder)


def test_many_runs_are_published_as_one_archive(
    recipe: Recipe, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which holds the folders that few would be."""
    monkeypatch.setattr("cme_bench.experiments.reproduce.publish.FEW_RUNS", 3)
    evaluations = [job for job in all_jobs(recipe) if job.kind == "evaluate"]
    for number, job in enumerate(evaluations):
        run = make_run(tmp_path / "runs" / job.name, {"cme_a": MadeTask([1.0, 0.0, float(number % 2)])})
        packs = [folder.packed(job.row, job.seed), folder.run(job.row, job.seed)]
        pack_run(run.folder, packs[number % 2])  # some were carried, others are as they were made
    out = tmp_path / "published"
    out.mkdir()
    publish_runs(folder, evaluations, out)
    with tarfile.open(out / "runs.tar.xz") as archive:
        archive.extractall(tmp_path / "there", filter="data")
    publish_runs(folder, evaluations[:3], out)
    assert sorted(p.name for p in out.iterdir()) == ["runs", "runs.tar.xz"]
    for job in evaluations:
        place = folder.run(job.row, job.seed).relative_to(folder.path)
        for name in ("run.json", "results.json", "scores.json"):
            content = (tmp_path / "there" / place / name).read_bytes()
            assert content == (folder.scores(job.row, job.seed) / name).read_bytes()
            if job in evaluations[:3]:
                assert content == (out / place / name).read_bytes()
