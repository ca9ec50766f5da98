"""MLflow: the server that ``MLFLOW_TRACKING_URI`` names, else the folder ``mlruns`` here."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cme_bench.trackers.entry import Entry

ID_TAG = "cme_bench.id"
_LONGEST = 500
"""Characters of a parameter's value: the least that all its stores take."""


def open_entry(entry: Entry) -> MlflowEntry:
    """Open the entry, or the same again after a resume."""
    return MlflowEntry(entry)


class MlflowEntry:
    """A run of MLflow."""

    def __init__(self, entry: Entry) -> None:
        place = os.environ.get("MLFLOW_TRACKING_URI")
        if not place:
            place = Path("mlruns").resolve().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its small package has no database
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client: Any = MlflowClient(tracking_uri=place)
        experiment = self._client.get_experiment_by_name(entry.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(entry.project)
        before = self._client.search_runs([number], filter_string=f"tags.`{ID_TAG}` = '{entry.id}'")
        if before:
            self._id = before[0].info.run_id
            return
        run = self._client.create_run(number, run_name=entry.name, tags={ID_TAG: entry.id})
        self._id = run.info.run_id
        params = [Param(key, str(value)[:_LONGEST]) for key, value in entry.config.items()]
        for start in range(0, len(params), 100):  # its most at a time
            self._client.log_batch(self._id, params=params[start : start + 100])

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(k, float(v), now, step) for k, v in values.items()])

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        data = {column: [row[i] for row in rows] for i, column in enumerate(columns)}
        self._client.log_table(self._id, data, f"{name}.json")

    def close(self) -> None:
        self._client.set_terminated(self._id)
