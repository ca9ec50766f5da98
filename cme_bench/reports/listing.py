"""Runs of a folder, a row each: what each is, how far it got, and what it scored.

Only ``run.json``, ``results.json`` and the lock are read, so that hundreds of runs are listed in a moment.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cme_bench.reports.runs import RunView
from cme_bench.runs.find import find_runs
from cme_bench.runs.folder import read_both, read_run
from cme_bench.runs.owner import being_written, last_change
from cme_bench.runs.packed import scores_file
from cme_bench.runs.records import EstimateRecord, Results, RunRecord
from cme_bench.util.errors import CmeError

if TYPE_CHECKING:
    import pandas as pd

State = Literal["running", "preparing", "finished", "stopped", "incomplete", "broken"]
"""preparing: it writes no ``run.json`` yet; stopped: it ended before all items had an answer; incomplete:
some items have none, because no worker survived them; broken: a file of it cannot be read."""
COLUMNS = (
    "name",
    "state",
    "resumable",
    "model",
    "adapter",
    "method",
    "tasks",
    "tasks_finished",
    "n",
    "score",
    "scores",
    "engine",
    "dtype",
    "data",
    "started",
    "seconds",
    "age_seconds",
    "folder",
    "fault",
)
NOTHING = Results(forms={}, tasks={})


@dataclass(frozen=True, slots=True)
class Overview:
    """One run. ``name``: its folder, as seen from the one that was listed; ``fault``: why it is broken.

    ``run`` is None where it cannot be read, or is not written yet. ``changed``: seconds since the epoch.
    """

    folder: Path
    name: str
    state: State
    changed: float
    run: RunRecord | None = None
    results: Results = NOTHING
    fault: str = ""

    @property
    def view(self) -> RunView | None:
        """The run as reports read it; None where they cannot."""
        if self.run is None or not self.results.tasks:
            return None
        return RunView(self.folder, self.run, self.results)

    @property
    def model(self) -> str:
        """The base's name, with its quantisation if it has one."""
        return "" if self.run is None else self.run.model.label

    @property
    def adapter(self) -> str:
        """The adapter's name; empty for a base model."""
        return self.run.adapter.name if self.run is not None and self.run.adapter else ""

    @property
    def n(self) -> int:
        """Items that are scored once it is finished."""
        return 0 if self.run is None else sum(task.n for task in self.run.tasks.values())

    @property
    def finished_tasks(self) -> frozenset[str]:
        """The tasks whose result is that of all their items; one of before a larger limit is not."""
        planned = {} if self.run is None else self.run.tasks
        return frozenset(
            name
            for name, result in self.results.tasks.items()
            if result.hash == planned[name].hash
            and (self.state == "finished" or result.score.n >= planned[name].n)
        )

    @property
    def scores(self) -> dict[str, EstimateRecord]:
        """The average of each form; where scores have none, that of its only task."""
        found = {}
        for name, form in self.results.forms.items():
            only = list(form.domains.values()) if len(form.domains) == 1 else [None]
            estimate = form.average or only[0]
            if estimate is not None:
                found[name] = estimate
        return found

    @property
    def resumable(self) -> bool:
        """Whether the command that began it goes on with it: there is something left, and answers were
        kept."""
        return self.state in {"stopped", "incomplete"} and not scores_file(self.folder).is_file()

    @property
    def started(self) -> str:
        """When its last session began, as ISO 8601 says it; empty where that is not recorded."""
        sessions = [] if self.run is None else self.run.sessions
        return (sessions[-1].started or "") if sessions else ""


def overview(folder: Path, root: Path, *, now: float | None = None) -> Overview:
    """Return what a run folder below ``root`` says of itself; a fault of its files is told, not raised."""
    name = str(folder.relative_to(root)) if folder != root else folder.resolve().name
    changed = last_change(folder)
    running = being_written(folder, now=now)
    try:
        if not (folder / "run.json").is_symlink() and not (folder / "run.json").exists():
            return Overview(folder, name, "preparing" if running else "stopped", changed)
        if (folder / "results.json").exists():
            run, results = read_both(folder)
        else:
            run, results = read_run(folder), NOTHING
    except (CmeError, OSError, RecursionError) as error:
        return Overview(folder, name, "broken", changed, fault=_fault(error, folder))
    if not running:
        changed = _ended(run) or changed
    return Overview(folder, name, _state(run, running=running), changed, run, results)


def _ended(run: RunRecord) -> float:
    """Return when the last session of a run ended, in seconds since the epoch; 0 where that is not recorded.

    The files themselves are younger wherever they were copied.
    """
    if not run.sessions or not run.sessions[-1].started:
        return 0.0
    try:
        ended = datetime.fromisoformat(run.sessions[-1].started).timestamp() + run.sessions[-1].seconds
    except (ValueError, OverflowError, OSError):
        return 0.0
    return ended if math.isfinite(ended) else 0.0


def _state(run: RunRecord, *, running: bool) -> State:
    if running:
        return "running"
    if run.finished:
        return "finished"
    return "incomplete" if run.unanswered else "stopped"


def _fault(error: BaseException, folder: Path) -> str:
    """Return the message without the folder's own path: the row says which it is."""
    text = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return text.replace(f"{folder}/", "").replace(str(folder), "this folder")


def list_frame(root: Path) -> pd.DataFrame:
    """Return a row for each run below ``root``, with what :func:`row` says as columns, and ``score``."""
    import pandas as pd

    now = time.time()
    rows = [row(overview(folder, root, now=now), now=now) for folder in find_runs(root).runs]
    for each in rows:
        each["score"] = next((score["value"] for score in each["scores"].values()), None)
    return pd.DataFrame(rows, columns=COLUMNS)


def as_json(runs: Sequence[Overview], *, now: float) -> str:
    """Return the runs as a JSON list, an object each; scores are as in ``results.json``, by form."""
    return json.dumps([row(run, now=now) for run in runs], indent=2) + "\n"


def row(run: Overview, *, now: float) -> dict[str, Any]:
    """Return one run as a JSON value, which is what a frame of runs has as columns too."""
    record = run.run
    return {
        "folder": str(run.folder),
        "name": run.name,
        "state": run.state,
        "resumable": run.resumable,
        "model": run.model,
        "adapter": run.adapter or None,
        "method": run.view.method if run.view else None,
        "tasks": [] if record is None else list(record.tasks),
        "tasks_finished": len(run.finished_tasks),
        "n": run.n,
        "scores": {form: {"value": s.value, "stderr": s.stderr, "n": s.n} for form, s in run.scores.items()},
        "engine": None if record is None else record.identity.engine,
        "dtype": None if record is None else record.identity.dtype,
        "data": None if record is None else record.identity.data,
        "started": run.started or None,
        "seconds": None if record is None else record.seconds,
        "age_seconds": max(0.0, round(now - run.changed, 1)),
        "fault": run.fault or None,
    }
