"""The lock file of the hub: which commit each dataset or model resolved to when it was first used.

A commit is always one that the hub named; later runs ask for exactly that one, and results record it.
"""

from __future__ import annotations

import fcntl
from pathlib import Path

import orjson

from cme_bench.errors import CmeError, UsageError
from cme_bench.paths import cache_folder

LOCK_NAME = "hub-lock.json"


def default_lock_file() -> Path:
    return cache_folder() / LOCK_NAME


def read_lock(file: Path) -> dict[str, str]:
    """``"datasets/ID"`` or ``"models/ID"`` -> commit; empty if the file does not exist."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        lock = orjson.loads(text)
    except orjson.JSONDecodeError as err:
        raise UsageError(f"{file}: broken lock file ({err}); mend or remove it") from err
    if not isinstance(lock, dict):
        raise UsageError(f"{file}: broken lock file (not a mapping); mend or remove it")
    return {str(k): str(v) for k, v in lock.items()}


def write_lock(file: Path, key: str, commit: str) -> str:
    """Record ``key`` -> ``commit`` unless another process did so first; the commit that counts.

    CmeError if the file cannot be written: a commit that is used must be recorded.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_suffix(".flock").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            lock = read_lock(file)
            if key not in lock:
                lock[key] = commit
                scratch = file.with_suffix(".tmp")
                scratch.write_bytes(orjson.dumps(lock, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
                scratch.replace(file)
            return lock[key]
    except OSError as err:
        raise CmeError(f"cannot write {file} ({err.strerror or err})") from err
