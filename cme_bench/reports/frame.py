"""Run folders as pandas frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cme_bench.reports.runs import RunView, open_run
from cme_bench.reports.scores import answer_of
from cme_bench.runs.folder import current_records
from cme_bench.runs.records import MetricRecord

RUN_COLUMNS = ["run", "model", "adapter", "method", "rank", "experts", "engine", "dtype"]
RUN_COLUMNS += ["quantisation", "data"]
SCORE_COLUMNS = [*RUN_COLUMNS, "form", "domain", "dataset", "task", "shots", "metric", "value", "stderr", "n"]
SCORE_COLUMNS += ["scale", "better"]
ITEM_COLUMNS = [*RUN_COLUMNS, "domain", "dataset", "task", "id", "target", "answer", "metric", "value"]


def load_frame(folders: Sequence[Path], *, items: bool) -> pd.DataFrame:
    """Return one row for each metric of each task, or with ``items`` for each metric of each item.

    UsageError for a folder that is no run, and with ``items`` for one without per-item records.
    """
    read, columns = (_item_rows, ITEM_COLUMNS) if items else (_score_rows, SCORE_COLUMNS)
    rows = [row for folder in folders for row in read(open_run(folder))]
    return pd.DataFrame(rows, columns=columns)


def _run(run: RunView) -> dict[str, Any]:
    identity, adapter = run.run.identity, run.run.adapter
    return {
        "run": str(run.folder),
        "model": run.run.model.name,
        "adapter": adapter and adapter.name,
        "method": run.method,
        "rank": adapter and adapter.rank,
        "experts": adapter and adapter.experts,
        "engine": identity.engine,
        "dtype": identity.dtype,
        "quantisation": run.run.model.quantisation or None,
        "data": identity.data,
    }


def _score_rows(run: RunView) -> Iterator[dict[str, Any]]:
    shared = _run(run)
    for task, result in run.results.tasks.items():
        place = {"form": result.form, "domain": result.domain, "dataset": result.dataset}
        shots = run.run.tasks[task].shots
        for metric, estimate in result.metrics.items():
            yield (shared | place | {"task": task, "shots": shots, "metric": metric} | _estimate(estimate))


def _estimate(metric: MetricRecord) -> dict[str, Any]:
    measure = metric.measure
    return {
        "value": metric.value,
        "stderr": metric.stderr,
        "n": metric.n,
        "scale": measure.scale.name,
        "better": measure.better,
    }


def _item_rows(run: RunView) -> Iterator[dict[str, Any]]:
    shared = _run(run)
    for task, result in run.results.tasks.items():
        place = {"domain": result.domain, "dataset": result.dataset, "task": task}
        for record in current_records(run.folder, task, run.run.tasks[task]):
            item = {"id": record.id, "target": record.target, "answer": answer_of(record)}
            for metric, value in record.scores.items():
                yield shared | place | item | {"metric": metric, "value": value}
