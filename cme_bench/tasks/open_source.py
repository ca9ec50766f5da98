"""The data source that an option names."""

from __future__ import annotations

from pathlib import Path

from cme_bench.tasks.sources import DataSource, FolderSource, mini_source
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
