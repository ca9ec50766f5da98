"""A step and an evaluation, measured on this machine: what the plan of a recipe rests on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cme_bench.experiments.reproduce.bundles import bundles
from cme_bench.experiments.reproduce.jobs import Folder, all_jobs
from cme_bench.experiments.reproduce.recipe import BASE, Recipe
from cme_bench.experiments.reproduce.registered_rows import suite
from cme_bench.experiments.reproduce.workbench import Workbench
from cme_bench.runs.folder import read_run
from cme_bench.runs.runner import ask
from cme_bench.training.curve import read_curve
from cme_bench.util.files import read_json, write_json
from cme_bench.util.provenance import hardware

PROBE_STEPS, PROBE_WARM = 8, 3
PROBE_ITEMS, PROBE_SHARE = 2, 25
"""Items of each task that are asked: so many, and on a GPU, which a few do not fill, one in so many."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured on ``hardware`` by one process: seconds and tokens of a training step of ``row``, seconds an
    item of an evaluation, and the ``start`` of a job (loading rows and model), in seconds.

    ``together``: how many trainings took that step at once, in one process; each counts its part of it.
    ``side_items``: of an evaluation of a row that is asked less.
    """

    hardware: str
    row: str
    step_seconds: float
    step_tokens: float
    item_seconds: float
    items: int
    start: float
    together: int = 1
    side_items: int = 0

    def items_of(self, recipe: Recipe, row: str) -> int:
        """Return the items of an evaluation of a row."""
        return self.items if recipe.tasks_of(row) == recipe.tasks else self.side_items


def measured_rates(recipe: Recipe, folder: Folder, bench: Workbench, note: Callable[[str], None]) -> Rates:
    """Return the rates in the folder, if they are of this machine; else measured now, which takes a few
    minutes at most: some steps of the most costly main row, and a few items of each task with its
    adapter."""
    import torch

    here = hardware(cuda=torch.cuda.is_available())
    file = folder.path / "rates.json"
    together = at_once(recipe)
    if file.is_file() and _fits(held := Rates(**read_json(file)), here, together):
        return held
    row = max(recipe.main, key=lambda name: _weight(recipe, name))
    rows = [row] if together == 1 else _first_rows(recipe)
    asked = _probe_items(recipe, cuda=torch.cuda.is_available())
    note(f"measuring a step of {', '.join(rows)}, and {asked} items of each task with {row}")
    scratch = folder.path / "probe"
    shutil.rmtree(scratch, ignore_errors=True)
    step_seconds, step_tokens, start = _probe_training(recipe, bench, rows, scratch)
    adapter = scratch / f"adapter{rows.index(row) if row in rows else 0}"
    item_seconds, items, side_items = _probe_evaluation(recipe, bench, scratch / "run", adapter, asked)
    shutil.rmtree(scratch)
    rates = Rates(here, row, step_seconds, step_tokens, item_seconds, items, start, together, side_items)
    write_json(file, {name: getattr(rates, name) for name in Rates.__slots__})
    return rates


def at_once(recipe: Recipe) -> int:
    """Return how many trainings one process of this recipe does at once, at most."""
    return min(recipe.together, sum(job.kind == "train" for job in all_jobs(recipe)))


def _fits(held: Rates, hardware: str, together: int) -> bool:
    """Return whether rates were measured on this machine, and with so many trainings at once."""
    return held.hardware == hardware and held.together == together


def _weight(recipe: Recipe, row: str) -> tuple[bool, int]:
    """Return a key by cost: routed methods cost more than others, and a rank more than a lower one."""
    from cme_bench.adapters.registry import routed_names

    training = recipe.rows[row].training
    return training["method"] in routed_names(), int(training.get("rank", 0))


def _first_rows(recipe: Recipe) -> list[str]:
    """Return the rows of the trainings that a process does first, a row once for each of its seeds."""
    trainings = [job for job in all_jobs(recipe) if job.kind == "train"]
    return [job.row for job in bundles(trainings, recipe)[0]]


def _probe_training(
    recipe: Recipe, bench: Workbench, rows: Sequence[str], scratch: Path
) -> tuple[float, float, float]:
    import time

    _ = bench.sets
    rate, outs = recipe.learning_rates[0], [scratch / f"adapter{number}" for number in range(len(rows))]
    asked = [
        bench.training_options(row, out, rate=rate, steps=PROBE_STEPS, seed=seed)
        for seed, (row, out) in enumerate(zip(rows, outs, strict=True))
    ]
    started = time.monotonic()
    bench.trained(*(replace(options, log_every=1) for options in asked))
    whole = time.monotonic() - started
    curve = read_curve(outs[0] / "loss.csv")
    first, last = curve[PROBE_WARM - 1], curve[-1]
    steps = last.step - first.step
    seconds = (last.seconds - first.seconds) / steps
    return seconds, (last.tokens - first.tokens) / steps, max(0.0, whole - PROBE_STEPS * seconds)


def _probe_items(recipe: Recipe, *, cuda: bool) -> int:
    """Return how many items of each task are asked."""
    return max(PROBE_ITEMS, (recipe.limit or 500) // PROBE_SHARE) if cuda else PROBE_ITEMS


def _probe_evaluation(
    recipe: Recipe, bench: Workbench, out: Path, adapter: Path, asked: int
) -> tuple[float, int, int]:
    questions = bench.questions(BASE, 0)
    options = replace(questions, limit=asked, out=out, adapters=(str(adapter),))
    (folder,) = ask(bench.engines, options)
    record = read_run(folder)
    limit = recipe.limit
    whole = {n: t.rows if limit is None else min(limit, t.rows) for n, t in record.tasks.items()}
    side = [spec.name for spec in suite().select(recipe.side_tasks or recipe.tasks)]
    seconds = record.stats.model_seconds / sum(task.n for task in record.tasks.values())
    return seconds, sum(whole.values()), sum(whole[name] for name in side)
