"""A list of runs for a terminal: which are listed, in which order, and how a row reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias

from rich.table import Table

from cme_bench.reports.listing import Overview, State
from cme_bench.util.terminal import markup

SortKey = Literal["name", "model", "adapter", "tasks", "n", "score", "state", "age"]
COLUMNS = ("run", "model", "adapter", "tasks", "n", "score", "state", "age", "resumable")
_AGES = ((86400, "d"), (3600, "h"), (60, "min"))
_NAMED = 3
_COLOURS: dict[State, str] = {
    "running": "cyan",
    "preparing": "cyan",
    "finished": "green",
    "stopped": "yellow",
    "incomplete": "yellow",
    "broken": "red",
}
Key: TypeAlias = tuple[bool, str | float]


def chosen(
    runs: Sequence[Overview],
    *,
    states: Sequence[State] = (),
    model: str = "",
    adapter: str | None = None,
    task: str = "",
) -> list[Overview]:
    """Return the runs that pass every filter.

    ``model``, ``adapter`` and ``task`` are parts of names, in any case; ``adapter`` "base" is none at all.
    """

    def passes(run: Overview) -> bool:
        tasks = [] if run.run is None else run.run.tasks
        return (
            (not states or run.state in states)
            and model.lower() in run.model.lower()
            and (adapter is None or _has_adapter(run, adapter))
            and (not task or any(task.lower() in name.lower() for name in tasks))
        )

    return [run for run in runs if passes(run)]


def _has_adapter(run: Overview, wanted: str) -> bool:
    if wanted == "base" and run.run is not None and not run.adapter:
        return True
    return bool(run.adapter) and wanted.lower() in run.adapter.lower()


def ordered(runs: Sequence[Overview], by: SortKey, *, reverse: bool = False) -> list[Overview]:
    """Return the runs in order: texts from A, scores and numbers from the highest, the youngest first.

    Runs without a value come last, either way.
    """
    key, falling = _KEYS[by]
    have = [run for run in runs if not key(run)[0]]
    lack = [run for run in runs if key(run)[0]]
    have.sort(key=lambda run: run.name)
    return [*sorted(have, key=key, reverse=falling != reverse), *lack]


def _score(run: Overview) -> Key:
    values = [score.value for score in run.scores.values() if score.value is not None]
    return (not values, values[0] if values else 0.0)


def _text(value: str) -> Key:
    return (not value, value.lower())


_KEYS: dict[SortKey, tuple[Callable[[Overview], Key], bool]] = {
    "name": (lambda run: (False, run.name.lower()), False),
    "model": (lambda run: _text(run.model), False),
    "adapter": (lambda run: _text(run.adapter), False),
    "tasks": (lambda run: (run.run is None, float(len(run.run.tasks) if run.run else 0)), True),
    "n": (lambda run: (run.run is None, float(run.n)), True),
    "score": (_score, True),
    "state": (lambda run: (False, run.state), False),
    "age": (lambda run: (False, run.changed), True),
}


def listing_table(runs: Sequence[Overview], *, now: float) -> Table:
    """Return a row for each run."""
    table = Table(show_edge=False, pad_edge=False)
    for name in COLUMNS:
        right = name in {"n", "score", "age"}
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for run in runs:
        adapter = (run.adapter or "–") if run.run else ""
        cells = (markup(cell) for cell in (run.name, run.model, adapter, tasks_text(run)))
        numbers = (f"{run.n:,}", scores_text(run)) if run.run else ("", "")
        state = f"[{_COLOURS[run.state]}]{run.state}[/]"
        table.add_row(*cells, *numbers, state, age(now - run.changed), _resumable(run))
    return table


def _resumable(run: Overview) -> str:
    return "–" if run.state in {"finished", "running", "preparing"} else "yes" if run.resumable else "no"


def tasks_text(run: Overview) -> str:
    """Return a run's tasks, few by name and many by number, and how many are finished where not all are."""
    if run.run is None:
        return ""
    names, done = list(run.run.tasks), len(run.finished_tasks)
    domains = len({task.domain for task in run.run.tasks.values()})
    text = ", ".join(names) if len(names) <= _NAMED else f"{len(names)} in {domains} domains"
    return text if done == len(names) else f"{text} ({done} done)"


def scores_text(run: Overview) -> str:
    """Return the score of each form in its unit, with its standard error; of the tasks that are finished."""
    text = ", ".join(_scores(run))
    return f"{text}{'' if run.state == 'finished' else ' so far'}" if text else "–"


def _scores(run: Overview) -> Iterator[str]:
    several = len(run.scores) > 1
    for form, score in run.scores.items():
        measure = run.results.forms[form].measure.read()
        if score.value is None:
            continue
        error = "" if score.stderr is None else f" ± {measure.shown(score.stderr)}"
        yield f"{measure.shown(score.value)}{error}" + (f" {form}" if several else "")


def age(seconds: float) -> str:
    """Return a time that has passed, in its largest unit: ``5 min``."""
    for size, unit in _AGES:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
