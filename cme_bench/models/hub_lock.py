"""The lock file of the hub: which commit each dataset or model resolved to when it was first used.

A commit is always one that the hub named; later runs ask for exactly that one, and results record it.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json, replacing, storing
from cme_bench.util.locks import locked
from cme_bench.util.paths import cache_folder

LOCK_NAME = "hub-lock.json"


def default_lock_file() -> Path:
    return cache_folder() / LOCK_NAME


def read_lock(file: Path) -> dict[str, str]:
    """Return the locked commits by ``"datasets/ID"`` or ``"models/ID"``; empty if the file does not exist."""
    if not file.exists():
        return {}
    try:
        return {str(key): str(commit) for key, commit in read_json(file).items()}
    except UsageError as error:
        raise UsageError(f"{error}; mend or remove this lock file") from error


def write_lock(file: Path, key: str, commit: str) -> str:
    """Record ``key`` -> ``commit`` unless another process did so first; the commit that counts.

    CmeError if the file cannot be written: a commit that is used must be recorded.
    """
    with storing(file, note=""):
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(file.with_suffix(".flock")):
            lock = read_lock(file)
            if key not in lock:
                lock[key] = commit
                with replacing(file) as stream:
                    stream.write(orjson.dumps(lock, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
            return lock[key]
