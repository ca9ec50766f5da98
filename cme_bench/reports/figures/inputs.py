"""The inputs of ``cme-bench figures``: folders and files told apart by their contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cme_bench.reports.runs import RunView, open_run
from cme_bench.runs.folder import is_run
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json

TRAINING, CURVE, ROUTER = "cme_training.json", "loss.csv", "router_load.csv"


class MissingInputError(Exception):
    """The input that a figure lacks, in words."""


@dataclass(slots=True)
class FigureInputs:
    """``curves``: columns name, method, step, tokens, loss; ``router``: columns of router_load.csv;
    ``benchmarks``: the JSON objects of ``results/bench``, with their file under "file"."""

    runs: list[RunView] = field(default_factory=list)
    curves: list[pd.DataFrame] = field(default_factory=list)
    benchmarks: list[dict[str, Any]] = field(default_factory=list)
    router: list[pd.DataFrame] = field(default_factory=list)


def read_inputs(paths: Sequence[Path]) -> FigureInputs:
    """Run folders, training folders, output folders of ``cme-bench router``, benchmark results.

    A run's adapter brings its own loss curve where its folder still lies there. UsageError for anything else.
    """
    found = FigureInputs()
    trainings: dict[Path, str] = {}
    for path in paths:
        if is_run(path):
            run = open_run(path)
            found.runs.append(run)
            adapter = run.run.adapter
            if adapter and adapter.path and (Path(adapter.path) / CURVE).is_file():
                trainings.setdefault(Path(adapter.path).resolve(), adapter.name)
        elif (path / CURVE).is_file():
            trainings.setdefault(path.resolve(), path.name)
        elif (path / ROUTER).is_file():
            found.router.append(pd.read_csv(path / ROUTER, keep_default_na=False))
        elif path.is_file() and path.suffix == ".json" and "bench" in (content := read_json(path)):
            found.benchmarks.append(content | {"file": str(path)})
        else:
            raise UsageError(
                f"{path}: neither a run folder, a training folder ({CURVE}), a router folder ({ROUTER}) nor "
                "a benchmark's JSON file"
            )
    found.curves = [read_curve_frame(folder, name) for folder, name in trainings.items()]
    return found


def read_curve_frame(folder: Path, name: str) -> pd.DataFrame:
    """Return the loss curve of a training folder: columns name, method, step, tokens, loss."""
    frame = pd.read_csv(folder / CURVE)
    record = folder / TRAINING
    method = read_json(record).get("method", name) if record.is_file() else name
    frame.insert(0, "name", name)
    frame.insert(1, "method", method)
    return frame[["name", "method", "step", "tokens", "loss"]]
