"""Folders of the user's own that the program writes to."""

from __future__ import annotations

import os
from pathlib import Path

from cme_bench.util.errors import UsageError


def cache_folder() -> Path:
    """Return ``$CME_BENCH_CACHE``, else ``$XDG_CACHE_HOME/cme-bench``, else ``~/.cache/cme-bench``."""
    if own := os.environ.get("CME_BENCH_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cme-bench"


def make_out(folder: Path) -> None:
    """Make the folder that ``--out`` names, if need be. UsageError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UsageError(f"--out {folder}: cannot be written ({err.strerror or err})") from err
