"""The overlap of a run's items with training texts, beside its scores: contamination.csv and .json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from cme_bench.experiments.contamination import N, find_overlaps, row_texts
from cme_bench.runs.folder import last_records, read_results
from cme_bench.runs.store import read_records, samples_file
from cme_bench.scoring.record import Record
from cme_bench.stats.estimates import Estimate, mean
from cme_bench.util.csv_text import csv_text
from cme_bench.util.errors import UsageError
from cme_bench.util.files import write_json, write_text


@dataclass(frozen=True, slots=True)
class TaskContamination:
    """One task of a run. ``score``: its primary metric over all items. ``clean``: the same over items that
    overlap with no training text. Metrics that are no mean of items have neither."""

    task: str
    metric: str
    items: int
    checked: int
    overlapping: tuple[int, ...]
    score: Estimate | None
    clean: Estimate | None


def check_run(folder: Path, texts: Iterable[str], *, training: str, n: int = N) -> list[TaskContamination]:
    """Compare every item of a run with ``texts`` and write both files into the run's folder.

    ``training`` says in the files what the texts are. Items with images are not checked. UsageError
    if the folder holds no run with records.
    """
    tasks = read_results(folder).tasks
    records = {task: last_records(read_records(samples_file(folder, task))) for task in tasks}
    if not any(records.values()):
        raise UsageError(f"{folder}: holds no records (samples/*.jsonl) whose items could be compared")
    rows = {task: {i: _compared(record) for i, record in items.items()} for task, items in records.items()}
    outcome = []
    for overlap in find_overlaps(rows, texts, n=n):
        metric = tasks[overlap.task].primary
        scores = {i: record.scores.get(metric) for i, record in records[overlap.task].items()}
        dirty = set(overlap.overlapping)
        outcome.append(
            TaskContamination(
                task=overlap.task,
                metric=metric,
                items=overlap.items,
                checked=overlap.checked,
                overlapping=overlap.overlapping,
                score=_mean(list(scores.values())),
                clean=_mean([score for i, score in scores.items() if i not in dirty]),
            )
        )
    content = {"training": training, "n": n, "tasks": {t.task: asdict(t) for t in outcome}}
    write_json(folder / "contamination.json", content)
    write_text(folder / "contamination.csv", contamination_csv(outcome))
    return outcome


def _compared(record: Record) -> dict[str, Any]:
    """Return the row whose texts are compared; nothing of an item with images, whose question may stand
    beside other images in training."""
    return {} if record.images else record.doc


def _mean(values: list[Any]) -> Estimate | None:
    if not all(isinstance(value, int | float) for value in values):
        return None
    return mean(values) if values else None


def contamination_csv(found: Iterable[TaskContamination]) -> str:
    """Return the columns task, items, checked, overlapping, share, metric, score, stderr, clean_score,
    clean_stderr, clean_n."""
    columns = (
        "task items checked overlapping share metric score stderr clean_score clean_stderr clean_n".split()
    )
    rows: list[list[object]] = []
    for t in found:
        share = len(t.overlapping) / t.checked if t.checked else ""
        clean = [*_cells(t.clean), t.clean.n if t.clean else 0]
        rows.append(
            [t.task, t.items, t.checked, len(t.overlapping), share, t.metric, *_cells(t.score), *clean]
        )
    return csv_text(columns, rows) + "\n"


def _cells(estimate: Estimate | None) -> list[float | str]:
    if estimate is None:
        return ["", ""]
    return [estimate.value, "" if math.isnan(estimate.stderr) else estimate.stderr]


def file_texts(file: Path) -> Iterator[str]:
    """Yield the texts of a training file, one line at a time: every string of a .jsonl row, or the lines of a
    .txt.

    UsageError with file and line for a row that is no JSON.
    """
    if file.suffix not in (".jsonl", ".txt"):
        raise UsageError(f"{file}: training texts are read from .jsonl and .txt files")
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if file.suffix == ".txt":
                yield line.decode("utf-8", errors="replace")
                continue
            try:
                yield from row_texts(orjson.loads(line) if line.strip() else "")
            except orjson.JSONDecodeError as error:
                raise UsageError(f"{file}:{number}: not JSON ({error})") from error
