"""Where the rows of a task come from: the hub, a local folder, the package's mini items, or files beside the
task file.

Every source answers one question, ``rows(spec, split)``, with a table of rows and the place of each row for
messages. Row order is the order of the file or of the hub's split; an item's id is its place in it.
"""

from __future__ import annotations

import glob
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cme_bench.harness.lm_eval_table import LOADING_KEYS
from cme_bench.models.hub_lock import LOCK_NAME, read_lock
from cme_bench.tasks.json_rows import as_lm_eval_reads, may_differ
from cme_bench.tasks.row_files import READERS, Rows, inside, joined, read_csv, read_jsonl, read_parquet
from cme_bench.tasks.spec import TaskSpec
from cme_bench.util.errors import UsageError

MADE = "cme-bench/made"
"""The ``dataset_path`` of tasks whose rows no hub has: they are made (:mod:`cme_bench.tasks.made`)."""
MINI_FOLDER = Path(__file__).resolve().parent.parent / "data" / "mini"


class DataSource(ABC):
    """One place that has rows for tasks."""

    name: str

    @abstractmethod
    def rows(self, spec: TaskSpec, split: str) -> Rows:
        """Return the rows of ``split`` (its name on the hub). UsageError if there are none."""

    def missing(self, spec: TaskSpec, split: str) -> str | None:
        """Say what is wrong if ``split`` is not there; None if it is, as far as can be told without
        loading."""
        return None

    @abstractmethod
    def dataset_keys(self, spec: TaskSpec, splits: Sequence[str]) -> dict[str, Any]:
        """Return ``dataset_path`` and the like, with which lm-eval itself loads the same rows of
        ``splits``."""

    def revision(self, spec: TaskSpec) -> str | None:
        """Return the commit the rows came from, where the source has one."""
        return None


@dataclass(frozen=True, slots=True)
class FolderSource(DataSource):
    """``<folder>/<dataset>/<split>.jsonl``, one JSON object a line, or the hub's Parquet files.

    A folder that ``cme-bench fetch`` wrote also knows the commit that its rows came from.
    """

    folder: Path
    name: str = "folder"

    def file(self, spec: TaskSpec, split: str) -> Path:
        """Return the path of the rows of ``split``, there or not. UsageError if it is outside the folder."""
        files = [self.folder / spec.folder / f"{stem}.jsonl" for stem in spec.file_stems(split)]
        return inside(next((file for file in files if file.is_file()), files[0]), self.folder)

    def rows(self, spec: TaskSpec, split: str) -> Rows:
        if problem := self.missing(spec, split):
            raise UsageError(problem)
        file = self.file(spec, split)
        if file.is_file():
            return replace(read_jsonl(file), root=self.folder)
        rows = joined([read_parquet(part) for part in self._parquet(spec, split)])
        return replace(rows, root=self.folder)

    def missing(self, spec: TaskSpec, split: str) -> str | None:
        file = self.file(spec, split)
        if file.is_file() or self._parquet(spec, split):
            return None
        return f"{file}: no such file (task {spec.name} needs split {split!r})"

    def _parquet(self, spec: TaskSpec, split: str) -> list[Path]:
        """Return the Parquet files of ``split`` as the hub has them: ``SPLIT.parquet`` or all parts
        ``SPLIT-00000-of-00003*.parquet``, in the dataset's folder, or below it in that of its configuration
        or ``data``. UsageError if a part is not there."""
        base = self.folder / spec.folder
        for folder in (base, base / str(spec.config.get("dataset_name") or "data"), base / "data"):
            for stem in spec.file_stems(split):
                if (whole := folder / f"{stem}.parquet").is_file():
                    return [inside(whole, self.folder)]
                parts = sorted(folder.glob(f"{glob.escape(stem)}-[0-9]*-of-[0-9]*.parquet"))
                if parts:
                    count = int(parts[0].stem.removeprefix(f"{stem}-").split("-")[2])
                    if len(parts) != count:
                        raise UsageError(
                            f"{folder}: {len(parts)} of the {count} parts of split {split!r} are there"
                        )
                    return [inside(part, self.folder) for part in parts]
        return []

    def dataset_keys(self, spec: TaskSpec, splits: Sequence[str]) -> dict[str, Any]:
        files: dict[str, str | list[str]] = {}
        kinds = set()
        for split in splits:
            file = self.file(spec, split)
            parts = [] if file.is_file() else self._parquet(spec, split)
            files[split] = [str(part.resolve()) for part in parts] or str(file.resolve())
            kinds.add("parquet" if parts else "json")
        if len(kinds) > 1:
            raise UsageError(
                f"{self.folder / spec.folder}: lm-eval reads JSON lines or Parquet, not both of a task"
            )
        return {"dataset_path": kinds.pop(), "dataset_kwargs": {"data_files": files}}

    def revision(self, spec: TaskSpec) -> str | None:
        return read_lock(self.folder / LOCK_NAME).get(f"datasets/{spec.config.get('dataset_path')}")


@dataclass(frozen=True, slots=True)
class BesideSource(DataSource):
    """The files that a task file itself names, below its own folder, as lm-eval writes it::

    dataset_path: csv                                   # or json (lines or an array), parquet
    dataset_kwargs: {data_files: {test: items.csv}}

    One file or a list of files without splits is the split ``train``, as for ``datasets``. A name may be a
    pattern (``part-*.jsonl``), and a file may be packed (``.gz``, ...).
    """

    name: str = "beside"

    def files(self, spec: TaskSpec, split: str) -> list[Path]:
        """Return the files of ``split``, in order. UsageError if the task file names none, or one outside its
        folder."""
        place = spec.line("dataset_kwargs.data_files")
        splits = self._splits(spec)
        if split not in splits:
            known = ", ".join(map(str, splits))
            raise UsageError(f"{place}: no data file for split {split!r} (there are {known})")
        folder = self._folder(spec)
        names = splits[split] if isinstance(splits[split], list) else [splits[split]]
        return [_below(folder, each, place) for name in names for each in _expanded(folder, str(name))]

    def rows(self, spec: TaskSpec, split: str) -> Rows:
        if problem := self.missing(spec, split):
            raise UsageError(problem)
        return replace(self._read(spec, split), root=self._folder(spec))

    def _read(self, spec: TaskSpec, split: str) -> Rows:
        files, settings = self.files(spec, split), self._settings(spec)
        kind = str(spec.config["dataset_path"])
        if kind == "csv":
            return joined([read_csv(file, settings) for file in files])
        if settings:
            place = spec.line(f"dataset_kwargs.{next(iter(settings))}")
            raise UsageError(f"{place}: {kind} files are read without the setting {next(iter(settings))!r}")
        rows = joined([READERS[kind](file) for file in files])
        if kind == "json" and not spec.scored_here and any(map(may_differ, files)):
            # of all splits: the types of the first hold for the others too
            return as_lm_eval_reads(
                rows, {name: self.files(spec, name) for name in self._splits(spec)}, split
            )
        return rows

    def _splits(self, spec: TaskSpec) -> dict[str, Any]:
        """Return what the task file names for each split. UsageError if it names no file."""
        named = (spec.config.get("dataset_kwargs") or {}).get("data_files")
        if named is None:
            place = spec.line("dataset_kwargs.data_files")
            raise UsageError(f"{place}: 'data_files' must name a file for each split")
        return named if isinstance(named, dict) else {_UNNAMED_SPLIT: named}

    def _folder(self, spec: TaskSpec) -> Path:
        """Return the folder of the file that names the data files."""
        place = spec.line("dataset_kwargs.data_files")
        return Path(place.rpartition(":")[0] or place).parent

    def _settings(self, spec: TaskSpec) -> dict[str, Any]:
        """Return the reader's settings, without the keys that ``datasets.load_dataset`` itself knows."""
        kwargs = spec.config["dataset_kwargs"]
        return {key: value for key, value in kwargs.items() if key not in LOADING_KEYS}

    def missing(self, spec: TaskSpec, split: str) -> str | None:
        for file in self.files(spec, split):
            if not file.is_file():
                return f"{spec.line('dataset_kwargs.data_files')}: {file}: no such file"
        return None

    def dataset_keys(self, spec: TaskSpec, splits: Sequence[str]) -> dict[str, Any]:
        files = {split: [str(file.resolve()) for file in self.files(spec, split)] for split in splits}
        one = {split: names[0] if len(names) == 1 else names for split, names in files.items()}
        kwargs = self._settings(spec) | {"data_files": one}
        return {"dataset_path": spec.config["dataset_path"], "dataset_kwargs": kwargs}


_UNNAMED_SPLIT = "train"
"""The split that ``datasets`` makes of files without one."""


def _expanded(folder: Path, name: str) -> list[str]:
    """Return the files that a pattern such as ``*.jsonl`` names, sorted; any other name as it is."""
    if not any(sign in name for sign in "*?[") or Path(name).is_absolute() or (folder / name).exists():
        return [name]
    found = [file for file in sorted(folder.glob(name)) if file.is_file()]
    return [str(file.relative_to(folder)) for file in found] or [name]


def _below(folder: Path, name: str, place: str) -> Path:
    if "://" in name:
        raise UsageError(f"{place}: {name}: files are not fetched from the net; put it beside the task file")
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{place}: {name} leads out of {folder}, so it is not read")
    return file


def is_made(spec: TaskSpec) -> bool:
    """Return whether the task's rows are made here, from packages."""
    return spec.config.get("dataset_path") == MADE


def mini_source() -> FolderSource:
    """Return the items written for this project: a smoke test of every domain, not a measurement."""
    return FolderSource(MINI_FOLDER, name="mini")
