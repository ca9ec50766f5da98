"""The runs of a recipe as the reports take them: a view a row, seeds pooled, under the row's title."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from cme_bench.experiments.reproduce.jobs import Folder
from cme_bench.experiments.reproduce.recipe import BASE, Recipe
from cme_bench.reports.runs import RunView, open_run
from cme_bench.reports.seeds import pool_seeds
from cme_bench.scoring.aggregate import BLIND, OUTSIDE


@dataclass(frozen=True, slots=True)
class RowRuns:
    """The runs of one row, a view a seed, and ``pooled``: all of them as one."""

    name: str
    title: str
    seeds: tuple[RunView, ...]
    pooled: RunView


def open_rows(recipe: Recipe, folder: Folder, names: Iterable[str], *, pool: bool = True) -> list[RowRuns]:
    """Return the evaluated runs of some rows. ``pool``: False where means over seeds are not wanted, which
    take longest; the first seed's run stands in their place."""
    found = []
    for name in names:
        views = [open_run(folder.scores(name, seed)) for seed in range(recipe.seeds_of(name))]
        title = recipe.rows[name].title
        pooled = pool_seeds(views)[0] if pool and len(views) > 1 else views[0]
        found.append(RowRuns(name, title, tuple(views), titled(pooled, title)))
    return found


def open_base(folder: Folder) -> RunView:
    """Return the run of the bare model, asked as the adapters are."""
    return open_run(folder.scores(BASE))


def titled(view: RunView, title: str) -> RunView:
    """Return the view under another name of its adapter."""
    assert view.run.adapter is not None
    adapter = structs.replace(view.run.adapter, name=title)
    return replace(view, run=structs.replace(view.run, adapter=adapter))


def of_forms(view: RunView, wanted: Collection[str]) -> RunView:
    """Return the view with its tasks and averages of some forms alone."""
    tasks = {name: result for name, result in view.results.tasks.items() if result.form in wanted}
    kept = {form: record for form, record in view.results.forms.items() if form in wanted}
    return replace(
        view,
        run=structs.replace(view.run, tasks={name: view.run.tasks[name] for name in tasks}),
        results=structs.replace(view.results, forms=kept, tasks=tasks),
        members=tuple(of_forms(member, wanted) for member in view.members),
    )


def alike(views: Sequence[RunView]) -> list[list[RunView]]:
    """Return the views in groups that were asked the same: one group, or one for each form that only some
    were asked."""
    every = dict.fromkeys(form for view in views for form in view.results.forms)
    if all(view.results.forms.keys() == every.keys() for view in views):
        return [list(views)]
    return [[of_forms(v, (form,)) for v in views if form in v.results.forms] for form in every]


def forms(views: Sequence[RunView]) -> list[str]:
    """Return the forms that every view has."""
    return [form for form in views[0].results.forms if all(form in v.results.forms for v in views)]


def seeing_forms(views: Sequence[RunView]) -> list[str]:
    """Return :func:`forms` but those asked without their images, which are there to compare with."""
    return [form for form in forms(views) if not form.startswith(OUTSIDE + BLIND)]
