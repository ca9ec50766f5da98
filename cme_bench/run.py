"""A run as Python sees it: its scores and items, and what two or more of them say side by side."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cme_bench.util.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from cme_bench.reports.cells import ComparisonTable
    from cme_bench.reports.compare import Comparison
    from cme_bench.reports.runs import RunView
    from cme_bench.runs.records import EstimateRecord, MetricRecord
    from cme_bench.scoring.scales import Measure


class Score(float):
    """A score that is a number, with its standard error.

    Attributes:
        stderr: Standard error, in the same unit; None if it cannot be estimated.
        n: Number of items behind it.
        metric: Its metric, such as ``acc``; ``macro`` for a mean over domains.
    """

    stderr: float | None
    n: int
    metric: str

    def __new__(cls, value: float, *, stderr: float | None, n: int, metric: str) -> Score:
        score = super().__new__(cls, value)
        score.stderr, score.n, score.metric = stderr, n, metric
        return score

    def __reduce__(self) -> tuple[Any, ...]:
        build = functools.partial(Score, stderr=self.stderr, n=self.n, metric=self.metric)
        return build, (float(self),)

    def __repr__(self) -> str:
        error = "" if self.stderr is None else f" ± {self.stderr:.3f}"
        return f"{float(self):.3f}{error} ({self.metric}, n={self.n})"


class Run:
    """A finished run, or what is finished of it: scores and items, read from its folder when asked for.

    Raises UsageError if the folder is no run, or has no finished task yet.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        from cme_bench.reports.runs import open_run

        self.folder = Path(folder)
        self.view: RunView = open_run(self.folder)

    @property
    def name(self) -> str:
        """The model's name, with the adapter's where there is one."""
        return self.view.label

    @property
    def finished(self) -> bool:
        """Whether every item of every task has its score."""
        return self.view.finished

    @functools.cached_property
    def scores(self) -> dict[str, Score]:
        """The main score of every finished task, by the task's name: shares in [0, 1] where it is one."""
        tasks = self.view.results.tasks
        return {name: _score(task.score, task.primary) for name, task in tasks.items()}

    @functools.cached_property
    def averages(self) -> dict[str, Score]:
        """The mean over domains, by form (``generated``, ``likelihood``), where scores have a mean."""
        forms = self.view.results.forms
        return {form: _score(found.average, "macro") for form, found in forms.items() if found.average}

    @property
    def average(self) -> Score:
        """The mean over domains of a run of one form.

        Raises UsageError if its tasks have several forms, each with a mean of its own (``averages``), or
        scores on a scale that has no mean.
        """
        if len(self.view.results.forms) > 1:
            forms = ", ".join(self.view.results.forms)
            raise UsageError(f"{self.folder} has answers of several forms ({forms}): see Run.averages")
        if not self.averages:
            raise UsageError(f"{self.folder}: scores on this scale have no common mean; see Run.scores")
        return next(iter(self.averages.values()))

    @functools.cached_property
    def items(self) -> pd.DataFrame:
        """One row for each item and metric: task, id, target, answer, value."""
        from cme_bench.reports.frame import load_frame

        return load_frame([self.folder], items=True)

    def compare(self, other: RunLike, **options: Any) -> RunComparison:
        """Compare with ``other`` as the baseline: differences are this run's score minus the other's.

        Options are those of :func:`cme_bench.compare`.
        """
        return compare(other, self, **options)

    def __repr__(self) -> str:
        lines = [f"Run({str(self.folder)!r}): {self.name}{'' if self.finished else ', unfinished'}"]
        lines += [f"  {name}: {self._shown(score, form)}" for form, name, score in self._lines()]
        return "\n".join(lines)

    def _lines(self) -> Iterable[tuple[str, str, Score]]:
        for name, score in self.scores.items():
            yield self.view.results.tasks[name].form, name, score
        for form, average in self.averages.items():
            yield form, f"average ({form})", average

    def _shown(self, score: Score, form: str) -> str:
        measure: Measure = self.view.measure(form)
        error = "" if score.stderr is None else f" ± {measure.shown(score.stderr)}"
        return f"{measure.shown(score)}{error} ({score.metric}, n={score.n})"

    def _repr_html_(self) -> str:
        return table([self])._repr_html_()


RunLike: TypeAlias = Run | str | PathLike[str]
"""A run, or its folder."""


def _score(estimate: EstimateRecord | MetricRecord, metric: str) -> Score:
    number = float("nan") if estimate.value is None else estimate.value
    return Score(number, stderr=estimate.stderr, n=estimate.n, metric=metric)


def as_run(run: RunLike) -> Run:
    """Return a run of what is one, or of its folder."""
    if not isinstance(run, Run | str | PathLike):
        raise UsageError(f"a {type(run).__name__} is no run: give a Run or a run's folder")
    return run if isinstance(run, Run) else Run(run)


@dataclass(frozen=True, repr=False)
class RunTable:
    """Runs side by side, a row each; ``forms``: a table for generated and one for likelihood tasks."""

    forms: tuple[ComparisonTable, ...]

    def render(
        self,
        fmt: str = "md",
        *,
        se: bool = True,
        n: bool = False,
        columns: int | None = None,
        brief: bool = False,
    ) -> str:
        """Return the tables as ``md``, ``latex``, ``html`` or ``csv``.

        ``se`` and ``n`` show standard errors and numbers of items; ``columns``: at most so many scores side
        by side; ``brief``: names and scores only. Raises UsageError for an unknown format.
        """
        from cme_bench.reports.table_text import render

        return render(self.forms, fmt, with_se=se, with_n=n, columns=columns, brief=brief)

    def __repr__(self) -> str:
        return self.render("md")

    def _repr_html_(self) -> str:
        from cme_bench.reports.table_text import fragment

        return fragment(self.forms)


@dataclass(frozen=True, repr=False)
class RunComparison:
    """Two runs item by item, B minus A; ``forms``: a comparison for each form that both have."""

    forms: tuple[Comparison, ...]

    def render(self, fmt: str = "md", *, by: str = "domain", flips: int = 5) -> str:
        """Return the comparison as ``md``, or ``csv`` of domains, tasks and average.

        ``by``: rows are of each ``domain`` or ``task``; ``flips``: how many items that flipped are named for
        each task, each way. Raises UsageError for unknown values.
        """
        from cme_bench.reports.compare_text import render_comparisons

        return render_comparisons(self.forms, fmt, by=by, flips=flips)

    def flips(self) -> str:
        """Return every item that flipped, with both answers, as csv."""
        from cme_bench.reports.compare_text import flips_csv

        return flips_csv(self.forms) + "\n"

    def __repr__(self) -> str:
        return self.render("md", flips=0)

    def _repr_html_(self) -> str:
        from cme_bench.reports.compare_text import comparison_html

        return "\n".join(comparison_html(comparison) for comparison in self.forms)


def compare(
    a: RunLike, b: RunLike, *, allow_mixed: bool = False, cluster: str | None = None, mid_p: bool = False
) -> RunComparison:
    """Compare two runs, or their folders, item by item: differences are B - A.

    Args:
        a: The baseline.
        b: The other run.
        allow_mixed: Compare runs that differ; each difference becomes a note.
        cluster: A field of the items: those with one value of it (a passage) are one draw.
        mid_p: Take McNemar's mid-p, which is closer to its level than the exact p.

    Raises UsageError for runs that must not be compared.
    """
    from cme_bench.reports.compare import compare_runs

    views = as_run(a).view, as_run(b).view
    return RunComparison(tuple(compare_runs(*views, allow_mixed=allow_mixed, cluster=cluster, mid_p=mid_p)))


def table(
    runs: RunLike | Sequence[RunLike],
    *,
    paper: bool = False,
    tests: bool = True,
    pool_seeds: bool = False,
    allow_mixed: bool = False,
) -> RunTable:
    """Tabulate runs, or their folders: a row each, a column for each domain, the best in bold.

    Args:
        runs: The runs.
        paper: Add the published rows, marked as on another base model.
        tests: Mark scores that are not significantly different from the best (reads all items).
        pool_seeds: One row for runs that differ in the adapter's training seed only.
        allow_mixed: Compare runs that differ; each difference becomes a note.

    Raises UsageError for runs that must not stand side by side.
    """
    from cme_bench.reports.runs import check_alike
    from cme_bench.reports.seeds import pool_seeds as pooled
    from cme_bench.reports.table import comparison_tables

    views = [as_run(run).view for run in ([runs] if isinstance(runs, Run | str | PathLike) else runs)]
    if not views:
        raise UsageError("a table needs at least one run")
    if pool_seeds:
        check_alike(views, allow_mixed=allow_mixed)
        views = pooled(views, allow_mixed=allow_mixed)
    return RunTable(tuple(comparison_tables(views, allow_mixed=allow_mixed, paper=paper, tests=tests)))
