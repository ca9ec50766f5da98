"""What each tracker kept, read by its own package."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Values = dict[str, dict[int, float]]


def by_trackio(project: str, name: str) -> tuple[Values, list[str]]:
    """Numbers by name and step, and the names of tables."""
    from trackio.sqlite_storage import SQLiteStorage

    found: Values = {}
    tables = []
    for row in SQLiteStorage.get_logs(project, name):
        for key, value in row.items():
            if isinstance(value, dict):
                tables.append(key)
            elif key not in ("step", "timestamp"):
                found.setdefault(key, {})[row["step"]] = value
    return found, tables


def by_mlflow(project: str) -> tuple[Values, dict[str, str]]:
    """Numbers by name and step, and the parameters, of the only run."""
    from mlflow import MlflowClient

    client: Any = MlflowClient(Path("mlruns").resolve().as_uri())
    [run] = client.search_runs([client.get_experiment_by_name(project).experiment_id])
    history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {k: {m.step: m.value for m in points} for k, points in history.items()}, run.data.params


def by_tensorboard(folder: Path) -> tuple[Values, list[str]]:
    """Numbers by tag and step, and the tags of texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in tags["scalars"]}, tags["tensors"]


def by_wandb(folder: Path) -> Values:
    """Numbers by name and step, from the file of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    found: Values = {}
    for data in _leveldb_log(file.read_bytes()):
        record: Any = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
        for key, value in row.items():
            if isinstance(value, int | float) and not key.startswith("_"):
                found.setdefault(key, {})[int(row.get("_step", record.history.step.num))] = value
    return found


def _leveldb_log(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, behind wandb's own header of 7 bytes; a block has 32 KiB."""
    place, held = 7, b""
    while place + 7 <= len(content):
        if 0 < (left := -place % 32768) < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        held += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield held
            held = b""
