"""A run in trackers: the scores of every task when it is finished, and at the end the table of all."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cme_bench.runs.options import AskOptions
from cme_bench.runs.records import RunRecord
from cme_bench.scoring.aggregate import TaskResult
from cme_bench.trackers import Entry, Trackers, open_trackers
from cme_bench.trackers.entry import entry_id, flat, reported, write_reported
from cme_bench.util.decode import json_value
from cme_bench.util.notes import Note

_CONFIG = ("identity", "model", "adapter", "arguments", "versions", "commit")
"""What trackers keep of ``run.json``."""
TABLE = "scores"


class RunReport(ExitStack):
    """The entries of one run. What a tracker was told before, in an earlier session, is not told again."""

    def __init__(self, folder: Path, options: AskOptions, run: RunRecord, note: Note) -> None:
        """Open them. Raises UsageError for a tracker that cannot begin."""
        super().__init__()
        self._folder = folder
        self._trackers: dict[str, Trackers] = {}
        self._step = 0
        if not options.report_to:
            return
        content = json_value(run)
        config = {key: content[key] for key in _CONFIG if content.get(key) is not None}
        entry = Entry(options.report_project, entry_id(folder), folder, flat(config), options.offline)
        self._told = reported(folder)
        with ExitStack() as undo:
            for name in options.report_to:
                self._trackers[name] = opened = open_trackers([name], entry, note)
                undo.callback(opened.close)
            self.push(undo.pop_all())

    def task(self, result: TaskResult) -> None:
        """Tell the metrics of a finished task, each with its standard error."""
        self._step += 1
        values: dict[str, float] = {}
        for name, estimate in result.metrics.items():
            values[f"{result.task}/{name}"] = estimate.value
            if estimate.stderr is not None:
                values[f"{result.task}/{name}_stderr"] = estimate.stderr
        values[f"{result.task}/n"] = result.score.n
        self._tell(result.task, values, self._step)

    def finish(self) -> None:
        """Tell the means over domains, and the table."""
        if not self._trackers:
            return
        with (self._folder / "summary.csv").open(newline="", encoding="utf-8") as stream:
            columns, *rows = csv.reader(stream)
        cells = [[_number(cell) for cell in row] for row in rows]
        named = [dict(zip(columns, row, strict=True)) for row in cells]
        means = {
            f"{row['domain']}/{_plain(row['task'])}": row["value"]
            for row in named
            if row["metric"] == "macro"
        }
        self._tell(TABLE, {k: v for k, v in means.items() if isinstance(v, float)}, self._step + 1)
        digest = {"rows": rows}
        for name, trackers in self._trackers.items():
            told = self._told.setdefault(name, {})
            if told.get("table") != digest:
                trackers.table(TABLE, columns, cells)
                told["table"] = digest
        write_reported(self._folder, self._told)

    def _tell(self, what: str, values: Mapping[str, float], step: int) -> None:
        for name, trackers in self._trackers.items():
            told = self._told.setdefault(name, {})
            if values and told.get(what) != values:
                trackers.log(values, step)
                told[what] = dict(values)


class LateReport:
    """A report that is opened, told everything and closed when its run has finished.

    For runs that go on at the same time: in one process a tracker may give one of them the other's entry.
    """

    def __init__(self, folder: Path, options: AskOptions, run: RunRecord, note: Note) -> None:
        self._open = functools.partial(RunReport, folder, options, run, note)
        self._results: list[TaskResult] = []

    def task(self, result: TaskResult) -> None:
        """Keep the metrics of a finished task."""
        self._results.append(result)

    def finish(self) -> None:
        """Tell the metrics of all tasks, the means over domains, and the table."""
        with self._open() as report:
            for result in self._results:
                report.task(result)
            report.finish()

    def close(self) -> None:
        """Do nothing: it is closed already, or was never opened."""


def _plain(form: str) -> str:
    """Return the name of a form in the letters that every tracker takes."""
    return re.sub(r"[^\w .:/-]", "", form)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text or None
