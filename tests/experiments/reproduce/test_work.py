"""Who does which job: order, locks, time that is up, and helpers that fail."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cme_bench.experiments.reproduce.bundles import bundles
from cme_bench.experiments.reproduce.jobs import Folder, Job, all_jobs, pending
from cme_bench.experiments.reproduce.recipe import Recipe, read_recipe
from cme_bench.experiments.reproduce.work import Clock, dealt_cards, helpers, interrupted_at, work
from cme_bench.util.errors import CmeError, InterruptedRun


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return read_recipe(recipe_file, "one")


@pytest.fixture
def folder(recipe: Recipe, tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "out")
    made.open(recipe)
    return made


def silent(_: str) -> None:
    pass


def test_every_job_is_done_once_after_its_needs(recipe: Recipe, folder: Folder) -> None:
    done: list[Job] = []

    def do(jobs: Sequence[Job]) -> list[dict[str, Any]]:
        assert all(folder.is_done(need) for job in jobs for need in job.needs)
        done.extend(jobs)
        return [{"validation_loss": 1.0}] * len(jobs)

    work(recipe, folder, do, silent, alone=True, clock=Clock(None))
    assert sorted(job.name for job in done) == sorted(job.name for job in all_jobs(recipe))
    assert "seconds" in folder.outcome(done[0].name)
    work(recipe, folder, do, silent, alone=True, clock=Clock(None))
    assert len(done) == len(all_jobs(recipe)), "nothing is done twice"


def test_trainings_that_are_ready_are_done_together(recipe: Recipe, folder: Folder) -> None:
    """Learning rates first, then the rows whose rate is chosen; one that another process has is left out."""
    done: list[list[str]] = []

    def do(jobs: Sequence[Job]) -> list[dict[str, Any]]:
        assert len({job.kind for job in jobs}) == 1
        done.append([job.name for job in jobs])
        if jobs[0].kind == "train":
            raise CmeError("enough")
        return [{} for _ in jobs]

    with folder.claimed("grid-lora-0.01") as taken, pytest.raises(CmeError, match="enough"):
        assert taken
        work(replace(recipe, together=4), folder, do, silent, alone=True, clock=Clock(None))
    assert done == [
        ["evaluate-base"],
        ["grid-lora-0.001", "grid-moelora-32-0.001", "grid-moelora-32-0.01"],
        ["grid-teamlora-32-0.001", "grid-teamlora-32-0.01"],
        ["train-moelora-32-seed0", "train-teamlora-32-seed0"],
    ]
    assert folder.is_done("grid-lora-0.001") and not folder.is_done("train-moelora-32-seed0")


def test_a_bundle_has_all_seeds_of_a_row_and_trainings_of_one_length(recipe: Recipe) -> None:
    recipe = replace(recipe, together=4, seeds=3, side_seeds=1)
    jobs = [job for job in all_jobs(recipe) if job.kind == "train"]
    assert [[f"{job.row}-{job.seed}" for job in bundle] for bundle in bundles(jobs, recipe)] == [
        ["lora-0", "lora-1", "lora-2", "moelora-32-0"],
        ["teamlora-32-0", "teamlora-32-1", "teamlora-32-2", "moelora-32-1"],
        ["team-half-0"],
        ["moelora-32-2"],
    ]
    assert bundles(jobs, replace(recipe, together=1)) == [[job] for job in jobs]


def test_a_job_that_fails_is_left_to_be_done(recipe: Recipe, folder: Folder) -> None:
    def do(jobs: Sequence[Job]) -> list[dict[str, Any]]:
        if jobs[0].kind == "grid":
            raise CmeError("no")
        return [{}]

    with pytest.raises(CmeError):
        work(recipe, folder, do, silent, alone=True, clock=Clock(None))
    assert pending(all_jobs(recipe), folder)[0].kind == "grid"


def _work_slowly(recipe: Recipe, folder: Folder, log: Path) -> None:
    def do(jobs: Sequence[Job]) -> list[dict[str, Any]]:
        with log.open("a") as stream:
            stream.write("".join(f"{os.getpid()} {job.name}\n" for job in jobs))
        time.sleep(0.03)
        return [{}] * len(jobs)

    work(recipe, folder, do, silent, alone=True, clock=Clock(None))


def test_processes_share_the_jobs(recipe: Recipe, folder: Folder, tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work_slowly, args=(recipe, folder, log)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(name for _, name in lines) == sorted(job.name for job in all_jobs(recipe))
    assert len({process for process, _ in lines}) > 1


def test_time_that_is_up_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedRun), interrupted_at(Clock(time.monotonic() + 0.05)):
        time.sleep(30)
    assert signal.getsignal(signal.SIGTERM) == before


def test_time_that_is_up_interrupts_code_that_catches_every_exception() -> None:
    """As torch does in ``load_state_dict``: it makes a message of each ``Exception`` and goes on."""
    tensors = {"weight": torch.zeros(3, 3), "bias": torch.zeros(3)}
    began = time.monotonic()
    with pytest.raises(InterruptedRun), interrupted_at(Clock(began + 0.2)):
        while time.monotonic() < began + 30:
            nn.Linear(3, 3).load_state_dict(tensors)
            with suppress(Exception):
                time.sleep(0.1)


def test_what_would_be_lost_is_not_begun_unless_it_comes_first(recipe: Recipe, folder: Folder) -> None:
    done: list[str] = []

    def do(jobs: Sequence[Job]) -> list[dict[str, Any]]:
        done.extend(job.name for job in jobs)
        return [{}] * len(jobs)

    soon = Clock(time.monotonic() + 120)
    with pytest.raises(InterruptedRun, match="efficiency-tiny-train would not be done in time"):
        work(recipe, folder, do, silent, alone=True, clock=soon)
    assert len(done) == len(all_jobs(recipe)) - 1
    with pytest.raises(InterruptedRun):
        work(recipe, folder, do, silent, alone=True, clock=soon, begun=1)
    assert work(recipe, folder, do, silent, alone=True, clock=soon) == 1
    assert done[-1] == "efficiency-tiny-train"


def test_a_clock_gives_others_its_end() -> None:
    assert Clock.of_minutes(None).arguments() == []
    option, minutes = Clock.of_minutes(10).arguments()
    assert option == "--minutes"
    assert 9.9 < float(minutes) <= 10


def test_a_helper_that_fails_is_told_of(tmp_path: Path) -> None:
    with (
        pytest.raises(CmeError, match=r"a worker failed \(.*worker1\.log\): .*no-such-command"),
        helpers(["no-such-command"], 1, tmp_path),
    ):
        pass


def test_workers_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib\n"
        "pathlib.Path(__file__).with_name('threads').write_text(os.environ['OMP_NUM_THREADS'])\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    set_to: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", set_to.append)
    with helpers(["--help"], 2, tmp_path):
        pass
    assert (tmp_path / "threads").read_text() == "2"
    assert set_to == [2, 8], "the leader takes its share, and all again at the end"


@pytest.mark.parametrize(
    ("visible", "cards", "dealt"),
    [
        ("", 2, ["1", "0", "1"]),
        ("3,GPU-5a", 2, ["GPU-5a", "3", "GPU-5a"]),
        ("4", 1, ["4"] * 3),
        ("", 0, [None] * 3),
    ],
)
def test_helpers_are_dealt_over_the_cards(
    monkeypatch: pytest.MonkeyPatch, visible: str, cards: int, dealt: list[str | None]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: cards)
    assert [held.get("CUDA_VISIBLE_DEVICES") for held in dealt_cards(3)] == dealt
