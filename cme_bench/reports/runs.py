"""Run folders as the tables see them, and whether they may stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cme_bench.errors import UsageError
from cme_bench.runs.store import read_json


@dataclass(frozen=True, slots=True)
class RunView:
    """What one run folder says: ``run`` is run.json, ``results`` our part of results.json."""

    folder: Path
    run: dict[str, Any]
    results: dict[str, Any]

    @property
    def label(self) -> str:
        """The model's name, with the adapter's where there is one."""
        adapter = self.run.get("adapter")
        return (
            f"{self.run['model']['name']} + {adapter['name']}" if adapter else str(self.run["model"]["name"])
        )

    @property
    def method(self) -> str:
        """How the model was adapted; "base" if it was not."""
        adapter = self.run.get("adapter")
        return str(adapter["method"]) if adapter else "base"

    @property
    def finished(self) -> bool:
        return bool(self.run.get("finished"))

    def limits(self) -> set[int]:
        """The --limit values of its tasks that left rows out."""
        return {t["n"] for t in self.run["tasks"].values() if t["n"] < t["rows"]}


def open_run(folder: Path) -> RunView:
    """Read a run folder. UsageError if it is none, or has no finished task yet."""
    run = read_json(folder / "run.json")
    if not (folder / "results.json").exists():
        raise UsageError(f"{folder}: no task of this run is finished yet")
    return RunView(folder, run, read_json(folder / "results.json")["cme"])


def differences(runs: Sequence[RunView]) -> list[str]:
    """Why the runs are not alike, one sentence each: engines, dtypes, task versions, item counts, formats."""
    found = []
    for part, name in (("engine", "engines"), ("dtype", "dtypes"), ("data", "data sources")):
        values = sorted({str(r.run["identity"].get(part)) for r in runs})
        if len(values) > 1:
            found.append(f"{name} differ: {', '.join(values)}")
    shared = set.intersection(*(set(r.results["tasks"]) for r in runs))
    every = set.union(*(set(r.results["tasks"]) for r in runs))
    if shared != every:
        found.append(f"tasks differ: {', '.join(sorted(every - shared))} not in all runs")
    for part, name in (("n", "item counts"), ("prompt_format", "prompt formats"), ("hash", "task versions")):
        tasks = [t for t in sorted(shared) if len({r.run["tasks"][t][part] for r in runs}) > 1]
        if tasks:
            found.append(f"{name} differ in {', '.join(tasks)}")
    return found
