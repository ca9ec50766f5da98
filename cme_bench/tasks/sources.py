"""Where the rows of a task come from: the hub, a local folder, the mini items shipped with the package, or
files that lie beside the task file.

Every source answers one question, ``rows(spec, split)``, with a table of rows and the place of each row for
messages. Row order is the order of the file or of the hub's split; an item's id is its place in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cme_bench.errors import UsageError
from cme_bench.hub_lock import LOCK_NAME, read_lock
from cme_bench.tasks.row_files import READERS, Rows, inside, read_csv, read_jsonl
from cme_bench.tasks.spec import TaskSpec

MINI_FOLDER = Path(__file__).resolve().parent.parent / "data" / "mini"


class DataSource(ABC):
    """One place that has rows for tasks."""

    name: str

    @abstractmethod
    def rows(self, spec: TaskSpec, split: str) -> Rows:
        """Rows of ``split`` (its name on the hub). UsageError if there are none."""

    def missing(self, spec: TaskSpec, split: str) -> str | None:
        """What is wrong if ``split`` is not there; None if it is, as far as can be told without loading."""
        return None

    @abstractmethod
    def dataset_keys(self, spec: TaskSpec, splits: Sequence[str]) -> dict[str, Any]:
        """``dataset_path`` and the like, with which lm-eval itself loads the same rows of ``splits``."""

    def revision(self, spec: TaskSpec) -> str | None:
        """The commit the rows came from, where the source has one."""
        return None


@dataclass(frozen=True, slots=True)
class FolderSource(DataSource):
    """``<folder>/<dataset>/<split>.jsonl``, one JSON object a line. A folder that ``cme-bench fetch`` wrote
    also knows the commit that its rows came from."""

    folder: Path
    name: str = "folder"

    def file(self, spec: TaskSpec, split: str) -> Path:
        """Where the rows of ``split`` lie, or should. UsageError if that is outside the folder."""
        return inside(self.folder / spec.folder / f"{spec.file_stem(split)}.jsonl", self.folder)

    def rows(self, spec: TaskSpec, split: str) -> Rows:
        if problem := self.missing(spec, split):
            raise UsageError(problem)
        return read_jsonl(self.file(spec, split))

    def missing(self, spec: TaskSpec, split: str) -> str | None:
        file = self.file(spec, split)
        return None if file.is_file() else f"{file}: no such file (task {spec.name} needs split {split!r})"

    def dataset_keys(self, spec: TaskSpec, splits: Sequence[str]) -> dict[str, Any]:
        files = {split: str(self.file(spec, split).resolve()) for split in splits}
        return {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}

    def revision(self, spec: TaskSpec) -> str | None:
        return read_lock(self.folder / LOCK_NAME).get(f"datasets/{spec.config.get('dataset_path')}")


@dataclass(frozen=True, slots=True)
class BesideSource(DataSource):
    """The files that a task file itself names, below its own folder, as lm-eval writes it::

    dataset_path: csv                                   # or json (lines), parquet
    dataset_kwargs: {data_files: {test: items.csv}}
    """

    name: str = "beside"

    def file(self, spec: TaskSpec, split: str) -> Path:
        """The file of ``split``. UsageError if the task file names none, or one outside its folder."""
        place = spec.line("dataset_kwargs")
        files = (spec.config.get("dataset_kwargs") or {}).get("data_files")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise UsageError(f"{place}: 'data_files' must name one file for each split")
        if split not in files:
            raise UsageError(f"{place}: no data file for split {split!r} (there are {', '.join(files)})")
        folder = Path(place.rpartition(":")[0] or place).parent
        file = folder / str(files[split])
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{place}: {files[split]} leads out of {folder}, so it is not read")
        return file

    def rows(self, spec: TaskSpec, split: str) -> Rows:
        if problem := self.missing(spec, split):
            raise UsageError(problem)
        kind = str(spec.config["dataset_path"])
        if kind != "csv":
            return READERS[kind](self.file(spec, split))
        settings = {k: v for k, v in spec.config["dataset_kwargs"].items() if k != "data_files"}
        return read_csv(self.file(spec, split), settings)

    def missing(self, spec: TaskSpec, split: str) -> str | None:
        file = self.file(spec, split)
        return None if file.is_file() else f"{spec.line('dataset_kwargs')}: {file}: no such file"

    def dataset_keys(self, spec: TaskSpec, splits: Sequence[str]) -> dict[str, Any]:
        files = {split: str(self.file(spec, split).resolve()) for split in splits}
        kwargs = dict(spec.config["dataset_kwargs"]) | {"data_files": files}
        return {"dataset_path": spec.config["dataset_path"], "dataset_kwargs": kwargs}


def source_of(spec: TaskSpec, source: DataSource) -> DataSource:
    """Where the rows of this task lie: beside its file if that names files, else in ``source``."""
    return BesideSource() if spec.config.get("dataset_path") in READERS else source


def mini_source() -> FolderSource:
    """The items written for this project: a smoke test of every domain, not a measurement."""
    return FolderSource(MINI_FOLDER, name="mini")


def open_source(data: str, *, offline: bool, lock_file: Path | None = None) -> DataSource:
    """The source that ``--data`` names: ``hub``, ``mini`` or a folder."""
    if data == "mini":
        return mini_source()
    if data == "hub":
        from cme_bench.tasks.hub import HubSource

        return HubSource(lock_file=lock_file, offline=offline)
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise UsageError(f"--data {data}: no such folder (or use 'hub' or 'mini')")
    return FolderSource(folder)
