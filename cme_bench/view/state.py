"""The runs of a folder as the page shows them: one JSON value, of which the page asks again and again."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from cme_bench.reports.intervals import Interval, interval_of, task_interval
from cme_bench.reports.listing import Overview, overview
from cme_bench.reports.runs import RunView
from cme_bench.reports.scores import AVERAGE
from cme_bench.runs.find import find_runs
from cme_bench.runs.owner import LOCK, being_written
from cme_bench.runs.records import RunRecord
from cme_bench.scoring.scales import SHARE, Measure, Scale
from cme_bench.util.errors import CmeError
from cme_bench.util.terminal import visible
from cme_bench.view.follow import CHUNK, Pace, PaceMeter, TaskFollower

_FILES = ("run.json", "results.json", LOCK)
READ_AT_A_TIME = 4 * CHUNK
"""Bytes of samples that are read for one answer to the page; the rest is for the next."""


@dataclass(slots=True)
class _Watched:
    """One run folder: what it was when its files were last read, and what follows it."""

    signature: tuple[object, ...]
    run: Overview
    tasks: dict[str, TaskFollower] = field(default_factory=dict)
    meter: PaceMeter = field(default_factory=PaceMeter)
    pace: Pace = field(default_factory=Pace)


class Board:
    """The runs below ``root``. A folder is read again only when a file of it changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()

    def state(self, opened: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return every run; of those that are ``opened``, by id, their tasks too."""
        with self._lock:
            notes = self._look()
            self._follow()
            runs = [_run(key, held, key in opened) for key, held in self._watched.items()]
        state = {"root": visible(str(self.root)), "runs": runs, "notes": [visible(note) for note in notes]}
        digest = hashlib.sha256(orjson.dumps(state)).hexdigest()[:16]
        return {**state, "seen": digest, "now": time.time()}

    def views(self, ids: list[str]) -> list[RunView] | None:
        """Return the runs of these ids, in the order of the page; None if one is unknown, or has no
        result."""
        with self._lock:
            self._look()
            held = [self._watched.get(key) for key in dict.fromkeys(ids)]
        found = [None if each is None else each.run.view for each in held]
        return [view for view in found if view is not None] if found and all(found) else None

    def _look(self) -> list[str]:
        """Read what changed; return the notes on folders that are not looked into."""
        try:
            found = find_runs(self.root)
        except CmeError as error:
            self._watched.clear()
            return [str(error)]
        before, self._watched = self._watched, {}
        for folder in found.runs:
            key = run_id(folder, self.root)
            signature = _signature(folder)
            held = before.get(key)
            if held is None or held.signature != signature:
                held = _renewed(held, signature, overview(folder, self.root))
            self._watched[key] = held
        return found.notes

    def _follow(self) -> None:
        left = READ_AT_A_TIME
        for held in sorted(self._watched.values(), key=lambda held: held.run.state != "running"):
            for task in held.tasks.values():
                if left > 0:
                    left -= task.read(min(left, CHUNK))


def run_id(folder: Path, root: Path) -> str:
    """Return what addresses call a run: a digest, so that no address holds a path."""
    return hashlib.sha256(str(folder.relative_to(root)).encode(errors="surrogateescape")).hexdigest()[:16]


def _signature(folder: Path) -> tuple[object, ...]:
    facts: list[object] = [being_written(folder)]
    for name in _FILES:
        try:
            status = (folder / name).lstat()
            facts.append((status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            facts.append(None)
    return tuple(facts)


def _renewed(held: _Watched | None, signature: tuple[object, ...], run: Overview) -> _Watched:
    new = _Watched(signature, run, meter=PaceMeter() if held is None else held.meter)
    if run.run is None:
        return new
    if run.state == "running":
        new.pace = new.meter.look(run.run)
    before = {} if held is None else held.tasks
    for name, planned in run.run.tasks.items():
        if name in run.finished_tasks:
            continue
        old = before.get(name)
        same = old is not None and old.planned == planned
        new.tasks[name] = old if old is not None and same else TaskFollower(run.folder, name, planned)
    return new


def _run(key: str, held: _Watched, opened: bool) -> dict[str, Any]:
    """Return one run as the page takes it."""
    run = held.run
    done, total = _progress(held)
    left = held.pace.left(total - done) if run.state == "running" and total > done else None
    return {
        "id": key,
        "name": visible(run.name),
        "model": run.model,
        "adapter": run.adapter,
        "state": run.state,
        "fault": visible(run.fault),
        "resumable": run.resumable,
        "changed": run.changed if run.state != "running" else None,
        "started": run.started,
        "done": done,
        "total": total,
        "tasks_done": len(run.finished_tasks),
        "tasks": 0 if run.run is None else len(run.run.tasks),
        "tokens_per_second": held.pace.tokens if run.state == "running" else None,
        "items_per_second": held.pace.items if run.state == "running" else None,
        "seconds_left": left,
        "scores": list(_scores(run)),
        "notes": [] if run.run is None or not opened else run.run.notes,
        "reportable": run.view is not None,
        "rows": list(_tasks(held, run.run)) if opened and run.run is not None else None,
    }


def _progress(held: _Watched) -> tuple[int, int]:
    """Return how many answers there are, and how many there will be."""
    if held.run.run is None:
        return 0, 0
    done = total = 0
    for name, planned in held.run.run.tasks.items():
        wanted = planned.n * planned.repeats
        total += wanted
        follower = held.tasks.get(name)
        done += follower.done if follower else wanted
    return done, total


def _scores(run: Overview) -> Iterator[dict[str, Any]]:
    """Yield the average of each form; of a run that is not finished it is that of its finished tasks."""
    view = run.view
    if view is None:
        return
    for form, summary in view.results.forms.items():
        if summary.average is None or summary.average.value is None:
            continue
        yield {"form": form, **_bar(interval_of(view, form, AVERAGE), view.measure(form))}


def _tasks(held: _Watched, record: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield every task with its score, or with what its items scored so far."""
    view = held.run.view
    for name, planned in record.tasks.items():
        follower = held.tasks.get(name)
        total = planned.n * planned.repeats
        found, measure = None, Measure()
        if follower is not None:
            found = follower.score()
        elif view is not None:
            found, measure = task_interval(view, name), view.results.tasks[name].score.measure
        yield {
            "name": name,
            "domain": planned.domain,
            "metric": planned.primary,
            "done": follower.done if follower else total,
            "total": total,
            "finished": follower is None,
            "fault": follower.fault if follower else "",
            "score": None if found is None else _bar(found, measure),
        }


def _bar(found: Interval, measure: Measure) -> dict[str, Any]:
    """Return a score as text, and where it and its interval lie on an axis from 0 to 100; no place on a
    scale without an end."""
    scale = measure.scale
    value, low, high = found
    text = f"{measure.shown(value)}{' %' if scale is SHARE else ''}"
    return {
        "value": value,
        "text": text,
        "interval": f"{measure.shown(low)} to {measure.shown(high)}",
        "places": [_place(x, scale) for x in (value, low, high)] if scale.averaged else None,
    }


def _place(value: float, scale: Scale) -> float:
    return round(100 * (min(max(value, scale.low), scale.high) - scale.low) / (scale.high - scale.low), 2)
