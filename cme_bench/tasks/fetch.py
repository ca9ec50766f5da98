"""Rows of tasks, fetched from the hub into a folder that ``--data`` takes: ``<dataset>/<split>.jsonl``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from cme_bench.images.files import ending_of, store_image
from cme_bench.models.hub_lock import LOCK_NAME
from cme_bench.tasks.hub import HubSource
from cme_bench.tasks.made.make import make_split
from cme_bench.tasks.row_files import READERS
from cme_bench.tasks.sources import FolderSource, is_made
from cme_bench.tasks.spec import TaskSpec
from cme_bench.util.errors import CmeError
from cme_bench.util.files import replacing, storing


@dataclass(frozen=True, slots=True)
class WantedSplit:
    """One split of a task's dataset, and the file that is to hold it."""

    spec: TaskSpec
    split: str
    file: Path


@dataclass(frozen=True, slots=True)
class Fetched:
    """The outcome for a wanted split: ``rows`` written (None if the file was there), or an ``error``."""

    wanted: WantedSplit
    rows: int | None = None
    error: str | None = None


def wanted_splits(specs: Iterable[TaskSpec], folder: Path) -> list[WantedSplit]:
    """Return the splits that the tasks score and take exemplars from, each once."""
    target = FolderSource(folder)
    wanted: dict[Path, WantedSplit] = {}
    for spec in specs:
        if spec.config.get("dataset_path") in READERS:
            continue  # its rows lie beside its file
        for split in (spec.eval_split, spec.fewshot_split):
            if split is not None:
                file = target.file(spec, split)
                wanted.setdefault(file, WantedSplit(spec, split, file))
    return list(wanted.values())


def fetch_splits(wanted: Iterable[WantedSplit], folder: Path) -> Iterator[Fetched]:
    """Fetch one split after another, each at the commit in ``folder/hub-lock.json``, which the hub
    resolves when a dataset is first asked for. A file that is there is kept: the same call goes on where it
    stopped.
    """
    source = HubSource(lock_file=folder / LOCK_NAME)
    for item in wanted:
        if item.file.exists():
            yield Fetched(item)
            continue
        try:
            yield Fetched(item, rows=_fetch_split(item, source))
        except CmeError as error:
            yield Fetched(item, error=str(error))


def _fetch_split(item: WantedSplit, source: HubSource) -> int:
    """Write the rows of one split, and return how many."""
    if is_made(item.spec):
        return make_split(item.spec.dataset, item.split, item.file.parent)
    table = source.rows(item.spec, item.split).table
    write_rows(item.file, table)
    return len(table)


def write_rows(file: Path, rows: Iterable[object]) -> None:
    """Write rows as JSON lines; the file appears whole or not at all. Images inside rows become files of
    ``images`` beside it, which the rows name."""
    with storing(file, note="what was fetched before is kept"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            for row in rows:
                stream.write(orjson.dumps(_without_contents(row, file.parent), default=str) + b"\n")


def _without_contents(value: Any, folder: Path) -> Any:
    """Return a row, or a value of one, with the paths of files in place of their contents."""
    if isinstance(value, bytes) and ending_of(value) is not None:
        return f"images/{store_image(value, folder / 'images')}"
    if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
        contents = value["bytes"]
        kept = isinstance(contents, bytes) and ending_of(contents) is not None
        return _without_contents(contents, folder) if kept else value["path"]
    if isinstance(value, Mapping):
        return {key: _without_contents(inner, folder) for key, inner in value.items()}
    return [_without_contents(inner, folder) for inner in value] if isinstance(value, list) else value


def located(task: TaskSpec, folder: str | None) -> TaskSpec:
    """Return the task with its rows in another folder and its splits under their own names."""
    metadata = {**task.metadata, "folder": folder or task.folder, "splits": {}}
    return replace(task, config={**task.config, "metadata": metadata})
