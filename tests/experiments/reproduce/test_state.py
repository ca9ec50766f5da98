"""What travels: units of whole rows, compressed once, that survive a copy made while they were written."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from cme_bench.experiments.reproduce.jobs import Folder, all_jobs
from cme_bench.experiments.reproduce.recipe import Recipe, read_recipe
from cme_bench.experiments.reproduce.state import State
from cme_bench.util.errors import UsageError

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
    for content in (whole[:-5], whole[: len(whole) // 2], b"\0" * 40):
        part.write_bytes(content)
        there = tmp_path / f"there{len(content)}"
        there.mkdir()
        with pytest.raises(UsageError, match="do not fit together"):
            State(tmp_path / "parts").unpack(Folder(there))
