"""``cme-bench reproduce``: jobs until all are done or time is up, then tables, figures and claims."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path

from cme_bench.experiments.reproduce.claims import check_claims, claims_json, claims_markdown
from cme_bench.experiments.reproduce.costs import plan_text
from cme_bench.experiments.reproduce.forest import write_forest
from cme_bench.experiments.reproduce.headline import write_headline
from cme_bench.experiments.reproduce.jobs import Folder, all_jobs, pending
from cme_bench.experiments.reproduce.options import CallOptions
from cme_bench.experiments.reproduce.publish import publish
from cme_bench.experiments.reproduce.rates import measured_rates
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.experiments.reproduce.registration import Registration, check_registration
from cme_bench.experiments.reproduce.results import write_all_figures, write_summary, write_tables
from cme_bench.experiments.reproduce.saver import saved_meanwhile
from cme_bench.experiments.reproduce.stages import (
    headline_done,
    next_stage,
    stage_text,
    staged,
    undecided,
    with_seeds,
)
from cme_bench.experiments.reproduce.state import State
from cme_bench.experiments.reproduce.work import Clock, helpers, interrupted_at, work
from cme_bench.experiments.reproduce.workbench import Workbench
from cme_bench.util.collection import rarely_collected
from cme_bench.util.errors import InterruptedRun
from cme_bench.util.files import write_json, write_text

Note = Callable[[str], None]


def plan(recipe: Recipe, out: Path, *, offline: bool, note: Note) -> str:
    """Return the cost of the recipe as text; rates are measured where the folder has none of this machine."""
    folder = Folder(out)
    folder.open(recipe)
    recipe = staged(recipe, folder)
    bench = Workbench(recipe, folder, offline=offline)
    try:
        return plan_text(recipe, measured_rates(recipe, folder, bench, note), folder)
    finally:
        bench.close()


def reproduce(recipe: Recipe, call: CallOptions, note: Note) -> None:
    """Run the jobs that are not finished; once all are, write tables, figures and claims.

    Of a recipe with a protocol the headline's rows come first. Their results are written once both of their
    stages are done, all others at the end; of a first stage nothing is. Raises InterruptedRun when the time
    is up or on a signal: what is done is saved.
    """
    clock = Clock.of_minutes(call.minutes)
    folder = Folder(call.out)
    state = None if call.state is None or call.is_helper else State(call.state)
    if state is not None and state.unpack(folder):
        note(f"went on from {call.state}")
    folder.open(recipe)
    registration = None if call.is_helper else _registration(recipe, folder, note)
    if call.stage_seeds is None:
        recipe = staged(recipe, folder)
    else:
        recipe = with_seeds(recipe, *map(int, call.stage_seeds.split(",")))
    bench = Workbench(recipe, folder, offline=call.offline, note=note)
    with nullcontext() if state is None else saved_meanwhile(lambda: state.pack(bench.recipe, folder), note):
        try:
            with interrupted_at(clock):
                _work_on(bench, registration, call, clock, note)
        except InterruptedRun:
            jobs = all_jobs(bench.recipe)
            done = len(jobs) - len(pending(jobs, folder))
            which = "jobs of this stage" if undecided(bench.recipe, folder) else "jobs"
            text = f"{done} of {len(jobs)} {which} are done; the same command goes on"
            raise InterruptedRun(text) from None
        finally:
            bench.close()
    if call.published is not None:
        publish(bench.recipe, folder, call.published)


def _work_on(
    bench: Workbench, registration: Registration | None, call: CallOptions, clock: Clock, note: Note
) -> None:
    """Go from stage to stage until all is computed, and write the results."""
    recipe, folder = bench.recipe, bench.folder
    while True:

        def meanwhile(recipe: Recipe = recipe) -> None:
            if undecided(recipe, folder) and headline_done(recipe, folder):
                write_headline(recipe, folder, registration, call.published, note)

        _compute(recipe, folder, bench, meanwhile, call=call, clock=clock, note=note)
        if call.is_helper:
            return
        if not _goes_on(recipe, folder, note):
            break
        bench.recipe = recipe = staged(recipe, folder)
    write_results(recipe, folder, registration, note)


def _registration(recipe: Recipe, folder: Folder, note: Note) -> Registration | None:
    scored = any(job.kind == "evaluate" and folder.is_done(job.name) for job in all_jobs(recipe))
    found = check_registration(recipe, folder, scored=scored)
    if found is not None:
        note(found.sentence())
    return found


def _goes_on(recipe: Recipe, folder: Folder, note: Note) -> bool:
    """Return whether there is more to compute: other rows, or the second stage that is decided now."""
    if staged(recipe, folder) != recipe:
        return True
    stage = next_stage(recipe, folder)
    if stage is not None:
        note(stage_text(stage))
    return stage is not None


def _compute(
    recipe: Recipe,
    folder: Folder,
    bench: Workbench,
    meanwhile: Callable[[], None],
    *,
    call: CallOptions,
    clock: Clock,
    note: Note,
) -> None:
    shared = [job for job in pending(all_jobs(recipe), folder) if not job.alone]
    with ExitStack() as stack:
        if not call.is_helper and recipe.workers > 1 and shared:
            count = min(recipe.workers, len(shared)) - 1
            command = (*call.helper_command, *clock.arguments(), *_seeds_arguments(recipe))
            stack.enter_context(helpers(command, count, folder.path))
        if not call.is_helper:
            meanwhile()  # helpers need seconds to begin
        begun = work(recipe, folder, bench, note, alone=False, clock=clock, idle=bench.draw_ahead)
    if not call.is_helper and not undecided(recipe, folder):
        work(recipe, folder, bench, note, alone=True, clock=clock, begun=begun)


def _seeds_arguments(recipe: Recipe) -> list[str]:
    """Return the option that gives another process the same seeds of a stage."""
    if not recipe.row_seeds:
        return []
    headline = max(recipe.seeds_of(name) for name in recipe.headline)
    others = [recipe.seeds_of(name) for name in recipe.rows if name not in recipe.headline]
    return ["--stage-seeds", f"{headline},{max(others, default=0)}"]


def write_results(recipe: Recipe, folder: Folder, registration: Registration | None, note: Note) -> None:
    """Write tables, figures, claims and README.md of a recipe whose jobs are all done."""
    said = "" if registration is None else registration.sentence()
    with rarely_collected():  # a record for every item of every run
        _write_results(recipe, folder, registration, said, note)


def _write_results(
    recipe: Recipe, folder: Folder, registration: Registration | None, said: str, note: Note
) -> None:
    for line in write_tables(recipe, folder, folder.path / "tables", said=said):
        note(f"tables/{line}")
    for line in write_all_figures(recipe, folder, folder.path / "figures"):
        note(line)
    claims = check_claims(recipe, folder)
    for line in write_forest(recipe, claims, folder.path / "figures", said=said):
        note(line)
    write_json(folder.path / "claims.json", claims_json(recipe, claims, registration))
    write_text(folder.path / "claims.md", claims_markdown(recipe, claims, said=said))
    write_summary(recipe, folder, folder.path, said=said)
