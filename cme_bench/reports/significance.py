"""All pairs of runs at once: paired permutation tests and bootstrap, by domain and for the average."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cme_bench.reports.runs import RunView
from cme_bench.reports.scores import NoItemMeanError, TaskScores, paired_tasks, weights
from cme_bench.stats.multiple import holm
from cme_bench.stats.resampling import (
    RESAMPLES,
    bootstrap,
    permutation_pvalues,
    share_best,
    sign_flips,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Column:
    """One domain or the average of m runs: ``means`` [m], ``p`` [m, m] of every pair, and how often each run
    is the ``best`` [m] when items are drawn anew."""

    means: Floats
    p: Floats
    best: Floats

    def against(self, run: int) -> Floats:
        """[m]: p values of each run against ``run``, Holm-adjusted over the others; NaN for itself."""
        p = self.p[run].copy()
        p[run] = np.nan
        return holm(p)

    def adjusted(self) -> Floats:
        """[m, m]: p values, Holm-adjusted over all pairs; NaN on the diagonal."""
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
    """Tests between all runs of one form. None if some run has no per-item records or pools seeds, or if no
    task is shared."""
    if len(runs) < 2 or not all(run.has_records and run.seeds == 1 for run in runs):
        return None
    try:
        return _significance(paired_tasks(runs, form, allow_mixed=allow_mixed), resamples)
    except NoItemMeanError as err:
        return Significance({}, (), reason=str(err))


def _significance(pairs: Iterable[TaskScores], resamples: int) -> Significance | None:
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
    return Significance({name: _column(parts, own) for name, own in weights(places).items()}, tuple(notes))


@dataclass(frozen=True, slots=True)
class _Part:
    """A task: means [m], sign flips and bootstrap draws [R, m]."""

    means: Floats
    flips: Floats
    draws: Floats


def _column(parts: Mapping[str, _Part], own: Mapping[str, float]) -> Column:
    def total(name: str) -> Floats:
        return np.asarray(sum(weight * getattr(parts[task], name) for task, weight in own.items()))

    means = total("means")
    return Column(means, permutation_pvalues(means, total("flips")), share_best(total("draws")))
