"""Where the rows of a task come from: the hub, a local folder, or the mini items shipped with the package.

Every source answers one question, ``rows(spec, split)``, with a table of rows and the place of each row for
messages. Row order is the order of the file or of the hub's split; an item's id is its place in it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from cme_bench.errors import UsageError
from cme_bench.tasks.spec import TaskSpec

if TYPE_CHECKING:
    import datasets

MINI_FOLDER = Path(__file__).resolve().parent.parent / "data" / "mini"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one split. ``lines[i]`` is the line of row i in ``origin`` where that is a file."""

    table: datasets.Dataset
    origin: str
    lines: Sequence[int] | None = None

    def place(self, index: int) -> str:
        """``file:line`` or ``dataset row N`` of row ``index``."""
        return f"{self.origin}:{self.lines[index]}" if self.lines else f"{self.origin} row {index}"

    def fingerprint(self) -> str:
        """sha256 of the rows' contents: the same rows give the same value from a folder or from the hub."""
        digest = hashlib.sha256()
        for row in self.table:
            digest.update(orjson.dumps(row, option=orjson.OPT_SORT_KEYS, default=str))
        return digest.hexdigest()


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
    """``<folder>/<dataset>/<split>.jsonl``, one JSON object a line."""

    folder: Path
    name: str = "folder"

    def file(self, spec: TaskSpec, split: str) -> Path:
        """Where the rows of ``split`` lie, or should."""
        return self.folder / spec.folder / f"{spec.file_stem(split)}.jsonl"

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


def read_jsonl(file: Path) -> Rows:
    """All rows of a jsonl file; blank lines are skipped. Every row has the same keys.

    UsageError with file and line for anything else.
    """
    import datasets
    import pyarrow

    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as err:
                raise UsageError(f"{file}:{number}: not a JSON object ({err})") from err
            if not isinstance(row, dict):
                raise UsageError(f"{file}:{number}: not a JSON object but a {type(row).__name__}")
            if rows and row.keys() != rows[0].keys():
                odd = ", ".join(sorted(row.keys() ^ rows[0].keys()))
                raise UsageError(f"{file}:{number}: keys differ from those of line {lines[0]}: {odd}")
            rows.append(row)
            lines.append(number)
    if not rows:
        raise UsageError(f"{file}: holds no rows")
    try:
        table = datasets.Dataset.from_list(rows)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as err:
        raise UsageError(f"{_first_misfit(file, rows, lines)}: types differ between rows ({err})") from err
    return Rows(table, str(file), lines)


def _first_misfit(file: Path, rows: Sequence[dict[str, Any]], lines: Sequence[int]) -> str:
    """``file:line`` of the first row whose types differ from the first row's."""
    first = {key: type(value) for key, value in rows[0].items() if value is not None}
    for row, line in zip(rows, lines, strict=True):
        if any(
            value is not None and type(value) is not first.get(key, type(value)) for key, value in row.items()
        ):
            return f"{file}:{line}"
    return str(file)


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
