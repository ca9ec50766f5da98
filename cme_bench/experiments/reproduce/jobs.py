"""The jobs of a recipe: what is computed, in which order, and which files say that it is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cme_bench.experiments.reproduce.recipe import BASE, Recipe
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json, write_json
from cme_bench.util.locks import try_lock
from cme_bench.util.paths import make_out

TRAININGS = ("grid", "train")
"""Kinds of jobs that train an adapter."""


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work. ``needs``: names of the jobs before it; ``alone``: nothing else may compute then.

    ``row`` and ``seed`` say of which adapter; ``rate``: the learning rate that a job of kind "grid" tries;
    ``part``: what a job of kind "efficiency" measures of ``row``, a shape. ``minutes``: expected of a
    job that cannot be gone on with once it is stopped.
    """

    kind: str
    row: str
    seed: int = 0
    rate: float | None = None
    part: str = ""
    needs: tuple[str, ...] = ()
    alone: bool = False
    minutes: float | None = None

    @property
    def name(self) -> str:
        """Fit for a file name; no two jobs of a recipe share one."""
        ending = {"grid": f"-{self.rate:g}" if self.rate else "", "efficiency": f"-{self.part}"}
        seed = f"-seed{self.seed}" if self.kind in ("train", "evaluate") and self.row != BASE else ""
        return f"{self.kind}-{self.row}{seed}{ending.get(self.kind, '')}"


def all_jobs(recipe: Recipe) -> list[Job]:
    """Return the jobs of a recipe, each after those it needs; main rows and first seeds first.

    A row that takes another's learning rate needs that row's grid. With one learning rate there is no grid. A
    row of busiest experts needs what it is made of.
    """
    grids: dict[str, list[Job]] = {}
    if len(recipe.learning_rates) > 1:
        for name in dict.fromkeys(row.tuned_as for row in recipe.rows.values() if recipe.seeds_of(row.name)):
            grids[name] = [Job("grid", name, rate=rate) for rate in recipe.learning_rates]
    jobs = [Job("evaluate", BASE), *(job for group in grids.values() for job in group)]
    names = sorted(recipe.rows, key=lambda name: name not in recipe.main)
    for seed in range(max(map(recipe.seeds_of, names))):
        for name in names:
            if seed >= recipe.seeds_of(name):
                continue
            if whole := recipe.rows[name].busiest_of:
                jobs.append(Job("evaluate", name, seed, needs=(Job("train", whole, seed).name,)))
                continue
            tried = tuple(job.name for job in grids.get(recipe.rows[name].tuned_as, ()))
            train = Job("train", name, seed, needs=tried)
            evaluate = Job("evaluate", name, seed, needs=(train.name,))
            jobs += [train, evaluate]
            if seed == 0 and name in recipe.routers:
                jobs.append(Job("router", name, needs=(evaluate.name,)))
    jobs += [
        Job("efficiency", shape.name, part=part, alone=True, minutes=shape.minutes)
        for shape in recipe.efficiency
        for part in shape.parts
    ]
    return jobs


@dataclass(frozen=True, slots=True)
class Folder:
    """The output folder of a recipe at one scale."""

    path: Path

    def open(self, recipe: Recipe) -> None:
        """Make the folder. UsageError if it holds another recipe or scale, or cannot be written."""
        make_out(self.path)
        (self.path / "jobs").mkdir(exist_ok=True)
        file = self.path / "recipe.json"
        identity = recipe.identity()
        if file.exists():
            for key, held in read_json(file).items():
                if identity.get(key) != held:
                    raise UsageError(
                        f"{self.path} holds results of another recipe ({key} differs); name "
                        "another folder with --out"
                    )
        write_json(file, identity)

    def adapter(self, row: str, seed: int) -> Path:
        return self.path / "adapters" / f"{row}-seed{seed}"

    def grid(self, row: str, rate: float) -> Path:
        return self.path / "grid" / f"{row}-{rate:g}"

    def run(self, row: str, seed: int = 0) -> Path:
        return self.path / "runs" / (row if row == BASE else f"{row}-seed{seed}")

    def packed(self, row: str, seed: int = 0) -> Path:
        """Return where a run's scores are kept without texts, in recipes with ``carry_scores``."""
        return self.path / "packed" / self.run(row, seed).name

    def scores(self, row: str, seed: int = 0) -> Path:
        """Return the folder that a run's scores are read from: the packed one, which is faster, if it is
        there."""
        packed = self.packed(row, seed)
        return packed if packed.is_dir() else self.run(row, seed)

    def router(self, row: str, by: str) -> Path:
        return self.path / "router" / f"{row}-{by}"

    def efficiency(self, shape: str, part: str) -> Path:
        return self.path / "efficiency" / f"{shape}-{part}.json"

    def marker(self, job: str) -> Path:
        """Return the file that says that a job is done."""
        return self.path / "jobs" / f"{job}.json"

    def is_done(self, job: str) -> bool:
        return self.marker(job).is_file()

    def outcome(self, job: str) -> dict[str, Any]:
        """Return the marker of a finished job: at least ``seconds`` and ``hardware``."""
        return read_json(self.marker(job))

    def finish(self, job: str, outcome: dict[str, Any]) -> None:
        """Write the marker; nothing of the job is computed again after this."""
        write_json(self.marker(job), outcome)

    @contextmanager
    def claimed(self, job: str) -> Iterator[bool]:
        """Yield whether this process may do the job: a lock that the system drops if the process dies."""
        with (self.path / "jobs" / f".{job}.lock").open("a") as lock:
            yield try_lock(lock)


def pending(jobs: Sequence[Job], folder: Folder) -> list[Job]:
    """Return the jobs that are not done, in order."""
    return [job for job in jobs if not folder.is_done(job.name)]
