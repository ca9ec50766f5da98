"""The cost of a recipe, from a step and an evaluation that were measured on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cme_bench.experiments.reproduce.jobs import TRAININGS, Folder, Job, all_jobs
from cme_bench.experiments.reproduce.recipe import BASE, Recipe
from cme_bench.experiments.reproduce.stages import with_seeds
from cme_bench.experiments.reproduce.workbench import Workbench
from cme_bench.reports.grids import markdown
from cme_bench.runs.folder import read_run
from cme_bench.runs.runner import ask
from cme_bench.training.curve import read_curve
from cme_bench.util.files import read_json, write_json
from cme_bench.util.provenance import hardware

PROBE_STEPS, PROBE_WARM = 8, 3
PROBE_ITEMS = 2


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured on ``hardware`` by one process: seconds and tokens of a training step of ``row``, seconds an
    item of an evaluation, and the ``start`` of a job (loading rows and model), in seconds.

    ``together``: how many trainings took that step at once, in one process; each counts its part of it.
    """

    hardware: str
    row: str
    step_seconds: float
    step_tokens: float
    item_seconds: float
    items: int
    start: float
    together: int = 1


def measured_rates(recipe: Recipe, folder: Folder, bench: Workbench, note: Callable[[str], None]) -> Rates:
    """Return the rates in the folder, if they are of this machine; else measured now, which takes a few
    minutes at most: some steps of the most costly main row, and a few items of each task on the bare
    model."""
    import torch

    here = hardware(cuda=torch.cuda.is_available())
    file = folder.path / "rates.json"
    together = at_once(recipe)
    if file.is_file() and _fits(held := Rates(**read_json(file)), here, together):
        return held
    row = max(recipe.main, key=lambda name: _weight(recipe, name))
    rows = [row] if together == 1 else _first_rows(recipe, together)
    note(f"measuring a step of {', '.join(rows)}, and {PROBE_ITEMS} items of each task")
    scratch = folder.path / "probe"
    shutil.rmtree(scratch, ignore_errors=True)
    step_seconds, step_tokens, start = _probe_training(recipe, bench, rows, scratch)
    item_seconds, items = _probe_evaluation(recipe, bench, scratch / "run")
    shutil.rmtree(scratch)
    rates = Rates(here, row, step_seconds, step_tokens, item_seconds, items, start, together)
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


def _first_rows(recipe: Recipe, count: int) -> list[str]:
    """Return the rows of the trainings that a process does first, a row once for each of its seeds."""
    return [job.row for job in all_jobs(recipe) if job.kind == "train"][:count]


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


def _probe_evaluation(recipe: Recipe, bench: Workbench, out: Path) -> tuple[float, int]:
    options = replace(bench.questions(BASE, 0), limit=PROBE_ITEMS, out=out)
    (folder,) = ask(bench.engines, options)
    record = read_run(folder)
    tasks = record.tasks.values()
    limit = recipe.limit
    items = sum(task.rows if limit is None else min(limit, task.rows) for task in tasks)
    return record.stats.model_seconds / sum(task.n for task in tasks), items


@dataclass(frozen=True, slots=True)
class Cost:
    """Of the jobs of one kind, done ones included: their number, in how many ``bundles`` a process does them,
    tokens trained, items, and minutes if one process did them all."""

    kind: str
    jobs: int
    bundles: int
    tokens: float
    items: int
    minutes: float


def costs(recipe: Recipe, rates: Rates) -> list[Cost]:
    """Return a cost for each kind of job."""
    jobs = all_jobs(recipe)
    found = []
    for kind in dict.fromkeys(job.kind for job in jobs):
        own = [job for job in jobs if job.kind == kind]
        steps = sum(_steps(recipe, job) for job in own)
        items = rates.items * len(own) if kind == "evaluate" else 0
        count = -(-len(own) // recipe.together) if kind in TRAININGS else len(own)
        seconds = steps * rates.step_seconds / rates.together + items * rates.item_seconds
        timed = [60 * job.minutes for job in own if job.minutes is not None]
        seconds += sum(timed) if timed else count * rates.start
        found.append(Cost(kind, len(own), count, steps * rates.step_tokens, items, seconds / 60))
    return found


def _steps(recipe: Recipe, job: Job) -> int:
    if job.kind == "grid":
        return recipe.grid_steps
    return recipe.steps_of(job.row) if job.kind == "train" else 0


def total_minutes(recipe: Recipe, rates: Rates) -> float:
    """Return the minutes of one process; several at once take less where they do not fill the machine."""
    return sum(cost.minutes for cost in costs(recipe, rates))


def cut_to_fit(recipe: Recipe, rates: Rates) -> Recipe:
    """Return the recipe with as many seeds as the budget allows, never fewer than one: seeds are cut before
    methods, those of other than main rows first."""
    budget = recipe.budget_minutes
    while budget is not None and total_minutes(recipe, rates) > budget:
        if recipe.side_seeds > 1:
            recipe = replace(recipe, side_seeds=recipe.side_seeds - 1)
        elif recipe.seeds > 1:
            recipe = replace(recipe, seeds=recipe.seeds - 1)
        else:
            break
    return recipe


def _stage_lines(recipe: Recipe, rates: Rates) -> list[str]:
    """Say which stage was counted, and what the second may cost at most."""
    if recipe.protocol is None:
        return []
    if recipe.row_seeds:
        return ["Both stages are counted: the second stage's seeds are decided."]
    most = total_minutes(with_seeds(recipe, recipe.protocol.cap, recipe.protocol.cap), rates)
    return [
        f"Counted is the first stage, {recipe.protocol.first_seeds} seeds a row; with the cap of "
        f"{recipe.protocol.cap} seeds a row it would be {most:.1f} minutes in all."
    ]


def _measured(rates: Rates) -> str:
    """Return what took the measured step."""
    return rates.row if rates.together == 1 else f"{rates.together} trainings at once"


def plan_text(recipe: Recipe, rates: Rates, folder: Folder) -> str:
    """Return the plan as people read it: rates, cost by kind, minutes a job, and what would be cut."""
    found = costs(recipe, rates)
    done = sum(folder.is_done(job.name) for job in all_jobs(recipe))
    rows = [
        [
            c.kind,
            str(c.jobs),
            str(c.bundles),
            f"{c.tokens:,.0f}",
            f"{c.items:,}",
            f"{c.minutes / c.jobs:.1f}",
            f"{c.minutes:.1f}",
        ]
        for c in found
    ]
    total = total_minutes(recipe, rates)
    rows.append(
        [
            "all",
            str(sum(c.jobs for c in found)),
            str(sum(c.bundles for c in found)),
            f"{sum(c.tokens for c in found):,.0f}",
            f"{sum(c.items for c in found):,}",
            "",
            f"{total:.1f}",
        ]
    )
    cut = cut_to_fit(recipe, rates)
    lines = [
        f"{recipe.name}, scale {recipe.scale}: {done} of {sum(c.jobs for c in found)} jobs are done",
        f"measured on {rates.hardware}: a step of {_measured(rates)} {rates.step_seconds:.3f} s for "
        f"{rates.step_tokens:.0f} tokens each, an item {1000 * rates.item_seconds:.1f} ms, a job's start "
        f"{rates.start:.1f} s",
        "",
        markdown(["jobs", "number", "processes", "tokens", "items", "minutes each", "minutes"], rows, left=1),
        "",
        f"Minutes are those of one process; {recipe.workers} will share the machine.",
        *_stage_lines(recipe, rates),
    ]
    if recipe.budget_minutes is not None:
        fits = total <= recipe.budget_minutes
        lines.append(
            f"Budget: {recipe.budget_minutes:g} minutes: {'it fits' if fits else 'it does not fit'}."
        )
        if not fits and recipe.protocol is None:
            after = total_minutes(cut, rates)
            lines.append(
                f"Cut seeds before methods: --seeds {cut.seeds} --side-seeds {cut.side_seeds} takes "
                f"{after:.1f} minutes"
                + ("." if after <= recipe.budget_minutes else ", still too long: fewer steps.")
            )
    return "\n".join(lines) + "\n"
