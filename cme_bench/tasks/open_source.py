"""The data source that an option names, and the one that a task has of its own."""

from __future__ import annotations

from pathlib import Path

from cme_bench.tasks.made.source import MadeSource
from cme_bench.tasks.row_files import READERS
from cme_bench.tasks.sources import BesideSource, DataSource, FolderSource, is_made, mini_source
from cme_bench.tasks.spec import TaskSpec
from cme_bench.util.errors import UsageError


def open_source(data: str, *, offline: bool, lock_file: Path | None = None) -> DataSource:
    """Open the source that ``--data`` names: ``hub``, ``mini`` or a folder."""
    if data == "mini":
        return mini_source()
    if data == "hub":
        from cme_bench.tasks.hub import HubSource

        return HubSource(lock_file=lock_file, offline=offline)
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise UsageError(f"--data {data}: no such folder (or use 'hub' or 'mini')")
    return FolderSource(folder)


def source_of(spec: TaskSpec, source: DataSource) -> DataSource:
    """Return the source of this task's rows: beside its file if that names files; made here if no hub has
    them and ``source`` is the hub; else ``source``."""
    if spec.config.get("dataset_path") in READERS:
        return BesideSource()
    if is_made(spec) and source.name == "hub":
        return MadeSource(offline=bool(getattr(source, "offline", False)))
    return source
