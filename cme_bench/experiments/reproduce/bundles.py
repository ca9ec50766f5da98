"""Which trainings of a recipe one process does at once."""

from __future__ import annotations

from collections.abc import Sequence

from cme_bench.experiments.reproduce.jobs import TRAININGS, Job
from cme_bench.experiments.reproduce.recipe import Recipe


def bundles(jobs: Sequence[Job], recipe: Recipe) -> list[list[Job]]:
    """Return the jobs in order, trainings of one kind in bundles of at most ``recipe.together``.

    A bundle holds all trainings of its first row, whose matrices are computed stacked, then those of the rows
    that come next. All have as many steps: whenever some of a bundle end, its step is built anew, which took
    20 s for twelve adapters on an H200.
    """
    found: list[list[Job]] = []
    left = list(jobs)
    while left:
        first = left[0]
        bundle = [first]
        if first.kind in TRAININGS:
            steps = job_steps(recipe, first)
            alike = [job for job in left if job.kind == first.kind and job_steps(recipe, job) == steps]
            rows = list(dict.fromkeys(job.row for job in alike))
            bundle = sorted(alike, key=lambda job: rows.index(job.row))[: recipe.together]
        found.append(bundle)
        left = [job for job in left if job not in bundle]
    return found


def job_steps(recipe: Recipe, job: Job) -> int:
    """Return the optimizer steps of a job; none if it is no training."""
    if job.kind == "grid":
        return recipe.grid_steps
    return recipe.steps_of(job.row) if job.kind == "train" else 0
