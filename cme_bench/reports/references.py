"""Rows that tell whether a model sees: chance, the most frequent answer, and the model without images.

They stand below the rows of runs, in the same columns, and take part in no test and in no ranking. Chance and
majority are what the tasks say of themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cme_bench.reports.columns import blind_column, column_weights
from cme_bench.reports.runs import RunView
from cme_bench.reports.scores import AVERAGE
from cme_bench.runs.folder import current_records
from cme_bench.runs.records import EstimateRecord
from cme_bench.scoring.aggregate import BLIND, OUTSIDE
from cme_bench.stats.intervals import student
from cme_bench.stats.paired import Difference, macro_difference, paired_difference
from cme_bench.stats.seeds import seeds_mean
from cme_bench.tasks.blind import ENDING

KNOWN = {"chance": "random_baseline", "majority": "majority_baseline"}
"""Row -> what a task records of it."""
Scores = Mapping[str, EstimateRecord]


def blind_form(form: str) -> str:
    """Return the form of the same tasks without their images."""
    return OUTSIDE + BLIND + form.removeprefix(OUTSIDE)


def is_blind(form: str) -> bool:
    """Return whether its tasks are asked without their images."""
    return form.startswith(OUTSIDE + BLIND)


def known_rows(runs: Sequence[RunView], form: str) -> Iterator[tuple[str, Scores]]:
    """Yield chance and majority with the score of each column, where every task of the form says so; nothing
    of CME's own forms, whose table is the paper's."""
    if not form.startswith(OUTSIDE) or runs[0].measure(form).kind:
        return
    tasks = {name: run.run.tasks[name] for run in runs for name in run.tasks(form)}
    places = [(name, task.domain, task.dataset) for name, task in tasks.items()]
    columns = column_weights(places)
    for row, key in KNOWN.items():
        known = {name: getattr(task, key) for name, task in tasks.items()}
        if all(value is not None for value in known.values()):
            shares = {
                column: sum(weight * known[name] for name, weight in own.items())
                for column, own in columns.items()
            }
            yield row, {column: EstimateRecord(value, None, 0) for column, value in shares.items()}


def blind_scores(run: RunView, form: str) -> Scores:
    """Return a run's scores without the images, by the columns of the form with them.

    A column is left out unless all its tasks were asked so; nothing is returned where some task has no twin
    with images, or its twin has other items.
    """
    other = blind_form(form)
    if is_blind(form) or other not in run.results.forms:
        return {}
    twins = {name.removesuffix(ENDING) for name in run.tasks(other)}
    if not twins <= set(run.tasks(form)) or not all(_same(run, name) for name in twins):
        return {}
    summary = run.results.forms[other]
    known = summary.datasets | {blind_column(name): e for name, e in summary.domains.items()}
    if summary.average is not None:
        known[AVERAGE] = summary.average
    columns = column_weights(_places(run, form)).items()
    return {name: known[name] for name, own in columns if set(own) <= twins and name in known}


def _places(run: RunView, form: str) -> list[tuple[str, str, str]]:
    tasks = run.run.tasks
    return [(name, tasks[name].domain, tasks[name].dataset) for name in run.tasks(form)]


def _same(run: RunView, name: str) -> bool:
    one, other = run.run.tasks[name], run.run.tasks[f"{name}{ENDING}"]
    return (one.n, one.rows, one.limit, one.shots) == (other.n, other.rows, other.limit, other.shots)


def sight(run: RunView, form: str) -> str | None:
    """Say what the images add to a run's average, paired by item, with its 95 % interval; None without
    records of both.

    Questions of one image are one draw; of several seeds, each question is one.
    """
    names = run.tasks(form)
    members = run.members or (run,)
    if AVERAGE not in blind_scores(run, form) or not all(member.has_records for member in members):
        return None
    found = [_gains(members, name) for name in names]
    gains = [each for each in found if each is not None]
    if len(gains) < len(found):
        return None
    own = column_weights(_places(run, form))[AVERAGE]
    shares = [own[name] for name in names]
    if len(members) > 1:
        pooled = seeds_mean([each.values for each in gains], shares)
        value, (low, high) = pooled.estimate.value, student(pooled.estimate, pooled.df)
    else:
        d = macro_difference(list(zip(shares, (each.difference() for each in gains), strict=True)))
        value, low, high = d.value, d.low, d.high
    shown = run.measure(form).shown
    return f"{shown(value, signed=True)} ({shown(low, signed=True)} to {shown(high, signed=True)})"


@dataclass(frozen=True, slots=True)
class _Gains:
    """A task: each item's score with its images less that without, [members, items], and its images."""

    values: NDArray[np.float64]
    images: tuple[tuple[str, ...], ...]

    def difference(self) -> Difference:
        """Return the mean of the first member; questions of one image are one draw, where that is known."""
        some = [images for images in self.images if images]
        shared = len(some) == len(self.images) and len(set(some)) < len(some)
        zero = np.zeros(self.values.shape[1])
        return paired_difference(zero, self.values[0], clusters=some if shared else None)


def _gains(members: Sequence[RunView], name: str) -> _Gains | None:
    """Return what images add to each item of a task; None where some have no number, or items differ."""
    rows, images = [], tuple[tuple[str, ...], ...]()
    for run in members:
        seen, unseen = (
            current_records(run.folder, task, run.run.tasks[task]) for task in (name, f"{name}{ENDING}")
        )
        if [record.id for record in seen] != [record.id for record in unseen]:
            return None
        metric = run.results.tasks[name].primary
        pairs = [(a.scores.get(metric), b.scores.get(metric)) for a, b in zip(seen, unseen, strict=True)]
        rows.append([np.nan if a is None or b is None else float(a) - float(b) for a, b in pairs])
        images = tuple(tuple(record.images or ()) for record in seen)
    table = np.array(rows, dtype=float)
    return None if np.isnan(table).any() else _Gains(table, images)
