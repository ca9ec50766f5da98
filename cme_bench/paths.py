"""Folders of the user's own that the program writes to."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$CME_BENCH_CACHE``, else ``$XDG_CACHE_HOME/cme-bench``, else ``~/.cache/cme-bench``."""
    if own := os.environ.get("CME_BENCH_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cme-bench"
