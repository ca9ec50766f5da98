"""The cost of a recipe, from a step and an evaluation that were measured on this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cme_bench.experiments.reproduce.bundles import bundles, job_steps
from cme_bench.experiments.reproduce.jobs import Folder, all_jobs
from cme_bench.experiments.reproduce.rates import Rates
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.experiments.reproduce.stages import with_seeds
from cme_bench.reports.grids import markdown


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
        steps = sum(job_steps(recipe, job) for job in own)
        items = sum(rates.items_of(recipe, job.row) for job in own) if kind == "evaluate" else 0
        count = len(bundles(own, recipe))
        seconds = steps * rates.step_seconds / rates.together + items * rates.item_seconds
        timed = [60 * job.minutes for job in own if job.minutes is not None]
        seconds += sum(timed) if timed else count * rates.start
        found.append(Cost(kind, len(own), count, steps * rates.step_tokens, items, seconds / 60))
    return found


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
    first, cap = recipe.protocol.first_seeds, recipe.protocol.cap
    seeds = {name: recipe.seeds_of(name) for name in recipe.rows}
    pair = max(seeds[name] for name in recipe.headline)
    others = max((n for name, n in seeds.items() if name not in recipe.headline), default=0)
    least = total_minutes(with_seeds(recipe, max(first, pair), max(first, others)), rates)
    most = total_minutes(with_seeds(recipe, cap, cap), rates)
    return [
        f"Counted are {pair} seeds of the headline's rows and {others} of others, as decided so far. With "
        f"at least {first} seeds a row it is {least:.1f} minutes in all, with the cap of {cap} {most:.1f}."
    ]


def _shared(recipe: Recipe, total: float) -> str:
    """Say how many processes and GPUs share the work."""
    import torch

    said = f"Minutes are those of one process; {recipe.workers} will share the machine"
    if (cards := min(torch.cuda.device_count(), recipe.workers)) > 1:
        said += f" and its GPUs: {total / cards:.1f} minutes if a GPU does no more than one process would"
    return f"{said}."


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
        _shared(recipe, total),
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
