"""The cost of a run that was not made, task by task, and how it reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cme_bench.runs.speed import Seconds

_COLUMNS = ("task", "items", "stored", "rows", "prompt tokens", "distinct", "new tokens, at most")


@dataclass(frozen=True, slots=True)
class TaskCost:
    """The questions of one task.

    ``items`` of it, with ``answers`` in all (several to an item where it repeats), of which ``stored`` are in
    the run folder already. The rest counts what is left. ``rows``: prompts, or prompts with a choice;
    ``tokens``: those of all rows as a model is fed them; ``distinct``: those that remain where rows share
    their beginnings; ``scored``: places whose logits are needed; ``new_tokens``: most that can be generated.
    """

    name: str
    domain: str
    items: int
    answers: int
    stored: int
    rows: int
    tokens: int
    distinct: int
    scored: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class DryRun:
    """The questions of a run that was not made, of one model with one adapter or none; ``str`` is a table.

    ``folder`` is where answers would be stored; ``seconds`` an estimate for this device, loading left out,
    None where another machine computes; ``notes``: what the run would tell of its prompts.
    """

    name: str
    folder: Path
    engine: str
    dtype: str
    device: str
    tasks: tuple[TaskCost, ...]
    seconds: Seconds | None
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> TaskCost:
        """The sums over all tasks."""
        names = ("items", "answers", "stored", "rows", "tokens", "distinct", "scored", "new_tokens")
        sums = {name: sum(getattr(task, name) for task in self.tasks) for name in names}
        return TaskCost("total", "", **sums)

    def __str__(self) -> str:
        return _text(self)


def _text(run: DryRun) -> str:
    """Return the tasks as a table, with the sums and the estimate below it."""
    rows = [_COLUMNS, *(_row(task) for task in run.tasks), _row(run.total)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    head = f"{run.name} ({run.engine}, {run.dtype}, {run.device}) -> {run.folder}"
    return "\n".join([head, "", lines[0], rule, *lines[1:-1], rule, lines[-1], "", *_ends(run)])


def _row(task: TaskCost) -> tuple[str, ...]:
    numbers = (task.items, task.stored, task.rows, task.tokens, task.distinct, task.new_tokens)
    return (task.name, *(f"{number:,}" for number in numbers))


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    return [
        row[0].ljust(widths[0]),
        *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
    ]


def _ends(run: DryRun) -> list[str]:
    notes = [f"note: {note}" for note in run.notes]
    if not run.total.rows:
        return [*notes, "Every answer is stored already."]
    if run.seconds is None:
        return [*notes, "No time is estimated: another machine computes."]
    text = f"About {span(run.seconds.prompts)} for the prompts on this device"
    if run.total.new_tokens:
        text += f", and up to {span(run.seconds.answers_at_most)} for answers if each takes all its tokens"
    rough = "Loading is left out, and so short a measurement can be off by a factor of three."
    return [*notes, f"{text}. {rough}"]


def span(seconds: float) -> str:
    """Return a time in the unit that reads best."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
