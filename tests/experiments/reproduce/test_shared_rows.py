"""One process draws and tokenises the rows of a seed once, for all of its sweeps, and says what each cost."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cme_bench.adapters.files import WEIGHTS_FILE
from cme_bench.experiments.reproduce.jobs import Folder, Job, all_jobs
from cme_bench.experiments.reproduce.recipe import read_recipe
from cme_bench.experiments.reproduce.work import Clock, work
from cme_bench.experiments.reproduce.workbench import Workbench
from cme_bench.training import train as training
from cme_bench.util.errors import CmeError


def test_rows_are_drawn_once_for_all_rows_of_a_recipe(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(recipe_file, "few")
    plans: list[int] = []
    real = training.make_plan

    def counted(options: Any, *args: Any, **more: Any) -> Any:
        plans.append(options.seed)
        return real(options, *args, **more)

    monkeypatch.setattr(training, "make_plan", counted)
    folders, notes = [Folder(tmp_path / name) for name in ("one", "two")], list[str]()
    for folder in folders:
        folder.open(recipe)
    bundles = [[Job("train", row, seed) for seed in (0, 1)] for row in ("moelora-32", "teamlora-32")]
    bench = Workbench(recipe, folders[0], note=notes.append)
    for jobs in bundles:
        bench(jobs)
    assert plans == [0, 1], "the second row has them from the first"
    assert len(notes) == 2 and all(note.startswith("2 trainings, time: ") for note in notes)
    for jobs in bundles:
        Workbench(recipe, folders[1])(jobs)
    assert plans == [0, 1, 0, 1, 0, 1]
    for job in (job for jobs in bundles for job in jobs):
        ours, theirs = (load_file(f.adapter(job.row, job.seed) / WEIGHTS_FILE) for f in folders)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_one_that_waits_draws_the_rows_of_what_comes(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process tries learning rates: each seed once, and not again when its turn has come."""
    recipe = replace(read_recipe(recipe_file, "few"), learning_rates=(1e-3, 1e-2), together=2)
    folder = Folder(tmp_path / "out")
    folder.open(recipe)
    bench, jobs = Workbench(recipe, folder), all_jobs(recipe)
    waiting = [job for job in jobs if job.needs]
    assert [bench.draw_ahead(waiting) for _ in range(3)] == [True, True, False]
    monkeypatch.setattr(training, "make_plan", None)
    for job in (job for job in jobs if job.kind == "grid"):
        folder.finish(job.name, {"validation_loss": 1.0})
    bench([job for job in jobs if job.kind == "train" and job.row == "teamlora-32"])
    assert not (folder.path / "jobs" / ".ahead").exists()


def test_it_is_asked_to_only_where_nothing_can_be_done(recipe_file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file, "one")
    folder = Folder(tmp_path / "out")
    folder.open(recipe)
    asked: list[list[str]] = []

    def idle(waiting: Sequence[Job]) -> bool:
        asked.append([job.kind for job in waiting])
        if len(asked) == 2:
            raise CmeError("enough")
        return True

    with ExitStack() as stack:
        for job in all_jobs(recipe):
            if not job.needs:
                assert stack.enter_context(folder.claimed(job.name))
        with pytest.raises(CmeError, match="enough"):
            work(recipe, folder, pytest.fail, print, alone=False, clock=Clock(None), idle=idle)
    assert asked[0] == asked[1] and "train" in asked[0] and "grid" not in asked[0]
