"""What travels: units of whole rows, compressed once, that survive a copy made while they were written."""

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
from cme_bench.util.errors import UsageError
from tests.support.folders import MadeTask, make_run

SIZE = 4_000
"""Bytes of a part here: room for one or two units."""


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


def test_a_unit_is_read_and_compressed_once(recipe: Recipe, folder: Folder, tmp_path: Path) -> None:
    finish(recipe, folder, 0)
    state, parts = State(tmp_path / "parts"), tmp_path / "parts"
    state.pack(recipe, folder)
    shutil.rmtree(folder.path / "packed")
    finish(recipe, folder, 1)
    state.pack(recipe, folder)
    names = carried(parts, tmp_path / "there")
    assert {f"packed/{row}-seed{n}/scores.json" for row in recipe.rows for n in (0, 1)} <= names.keys()
    # what came from elsewhere is not compressed again either
    elsewhere, new = State(parts), Folder(tmp_path / "new")
    new.path.mkdir()
    elsewhere.unpack(new)
    shutil.rmtree(new.path / "packed")
    elsewhere.pack(recipe, new)
    assert carried(parts, tmp_path / "again") == names


def test_a_copy_made_while_it_was_written_lacks_whole_units_at_worst(
    recipe: Recipe, folder: Folder, tmp_path: Path
) -> None:
    state, copies = State(tmp_path / "parts"), []
    for seed in range(4):
        finish(recipe, folder, seed)
        state.pack(recipe, folder, part_bytes=SIZE)
        copies.append(shutil.copytree(tmp_path / "parts", tmp_path / f"copy{seed}"))
    assert len(list(copies[3].iterdir())) > 2, "else nothing is torn"
    for number, file in enumerate(sorted(copies[2].iterdir())):
        torn = shutil.copytree(copies[3], tmp_path / f"torn{number}")
        shutil.copy(file, torn / file.name)  # this one as it was a minute before
        found = carried(torn, tmp_path / f"there{number}")
        for job in all_jobs(recipe):
            here = folder.packed(job.row, job.seed) / "scores.json"
            marked = f"jobs/{job.name}.json" in found
            scores = found.get(str(here.relative_to(folder.path)))
            assert scores == (here.read_bytes() if marked else None), job.name


def test_a_part_that_was_cut_is_refused(recipe: Recipe, folder: Folder, tmp_path: Path) -> None:
    finish(recipe, folder, 0)
    (part,) = State(tmp_path / "parts").pack(recipe, folder)
    whole = part.read_bytes()
    for content in (whole[:-5], whole[: len(whole) // 2], b"\0" * 40, b""):
        part.write_bytes(content)
        there = tmp_path / f"there{len(content)}"
        there.mkdir()
        with pytest.raises(UsageError, match="do not fit together"):
            State(tmp_path / "parts").unpack(Folder(there))


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
