"""All pairs of runs at once, by domain and for the average: paired tests, over seeds where runs pool them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cme_bench.reports.columns import column_weights
from cme_bench.reports.runs import RunView
from cme_bench.reports.scores import NoItemMeanError, TaskScores, paired_tasks
from cme_bench.scoring.scales import Measure
from cme_bench.stats.multiple import holm
from cme_bench.stats.resampling import (
    RESAMPLES,
    bootstrap,
    permutation_pvalues,
    share_best,
    sign_flips,
)
from cme_bench.stats.seeds import seeds_difference, seeds_mean

Floats = NDArray[np.float64]
SIGNIFICANT = 0.05
"""Adjusted p values below it are told from chance."""


@dataclass(frozen=True, slots=True)
class Column:
    """One domain or the average of m runs: ``means`` [m], ``p`` [m, m] of every pair, and how often each run
    is the ``best`` [m] when items are drawn anew. NaNs where runs of one seed meet pooled ones."""

    means: Floats
    p: Floats
    best: Floats

    def against(self, run: int) -> Floats:
        """Return [m]: p values of each run against ``run``, Holm-adjusted over the others; NaN for itself."""
        p = self.p[run].copy()
        p[run] = np.nan
        return holm(p)

    def adjusted(self) -> Floats:
        """Return [m, m]: p values, Holm-adjusted over all pairs; NaN on the diagonal."""
        result = np.full_like(self.p, np.nan)
        upper = np.triu_indices(len(self.p), k=1)
        result[upper] = holm(self.p[upper])
        result.T[upper] = result[upper]
        return result


@dataclass(frozen=True, slots=True)
class Significance:
    """A column for every domain and the average; ``notes``: what does not fit in pairing the items;
    ``reason``: why there are no columns, where there are none."""

    columns: dict[str, Column]
    notes: tuple[str, ...]
    reason: str = ""


def significance(
    runs: Sequence[RunView], form: str, *, allow_mixed: bool = False, resamples: int = RESAMPLES
) -> Significance | None:
    """Test all pairs of runs of one form: by paired permutation tests, or by t tests over seeds and items
    where some run pools seeds. None if some run has no per-item records, or if no task is shared."""
    if len(runs) < 2 or not all(run.has_records for run in runs):
        return None
    try:
        if any(run.members for run in runs):
            return _over_seeds(runs, form, allow_mixed)
        pairs = paired_tasks(runs, form, allow_mixed=allow_mixed)
        return _significance(pairs, resamples, runs[0].measure(form))
    except NoItemMeanError as err:
        return Significance({}, (), reason=str(err))


def _significance(pairs: Iterable[TaskScores], resamples: int, measure: Measure) -> Significance | None:
    parts: dict[str, _Part] = {}
    places: list[tuple[str, str, str]] = []
    notes: list[str] = []
    for number, pair in enumerate(pairs):
        parts[pair.task] = _Part(
            means=pair.scores.mean(axis=0),
            flips=sign_flips(pair.scores, resamples=resamples, seed=number),
            draws=bootstrap(pair.scores, resamples=resamples, seed=number),
        )
        places.append(pair.place)
        notes += pair.notes
    if not places:
        return None
    columns = column_weights(places, averaged=measure.scale.averaged)
    return Significance(
        {name: _column(parts, own, measure.sign) for name, own in columns.items()}, tuple(notes)
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A task: means [m], sign flips and bootstrap draws [R, m]."""

    means: Floats
    flips: Floats
    draws: Floats


def _column(parts: Mapping[str, _Part], own: Mapping[str, float], sign: int) -> Column:
    def total(name: str) -> Floats:
        return np.asarray(sum(weight * getattr(parts[task], name) for task, weight in own.items()))

    means = total("means")
    best = share_best(sign * total("draws")) if sign else np.full_like(means, np.nan)
    return Column(means, permutation_pvalues(means, total("flips")), best)


def _over_seeds(runs: Sequence[RunView], form: str, allow_mixed: bool) -> Significance | None:
    members = [run.members or (run,) for run in runs]
    pairs = list(paired_tasks([m for group in members for m in group], form, allow_mixed=allow_mixed))
    if not pairs:
        return None
    ends = np.cumsum([len(group) for group in members])[:-1]
    scores = {pair.task: [part.T for part in np.split(pair.scores, ends, axis=1)] for pair in pairs}
    columns = {
        name: _seed_column([[scores[task][i] for task in own] for i in range(len(runs))], list(own.values()))
        for name, own in column_weights(
            [pair.place for pair in pairs], averaged=runs[0].measure(form).scale.averaged
        ).items()
    }
    return Significance(columns, tuple(note for pair in pairs for note in pair.notes))


def _seed_column(runs: Sequence[Sequence[Floats]], own: Sequence[float]) -> Column:
    """Return ``runs[i]`` are the scores [seeds, items] of run i in each task, weighed by ``own``."""
    means = np.array([seeds_mean(tasks, own).estimate.value for tasks in runs])
    p = np.ones((len(runs), len(runs)))
    for i, first in enumerate(runs):
        for j in range(i + 1, len(runs)):
            p[i, j] = p[j, i] = seeds_difference(first, runs[j], own).pvalue()
    return Column(means, p, np.full(len(runs), np.nan))
