"""Small facts that take long to find, kept in a JSON file of the user's cache."""

from __future__ import annotations

from pathlib import Path

import orjson

from cme_bench.util.files import replacing
from cme_bench.util.locks import locked


def remembered(memory: Path) -> dict[str, str]:
    """Return what ``memory`` holds; a missing or broken file costs the work again, nothing else."""
    try:
        known = orjson.loads(memory.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(memory: Path, key: str, value: str) -> None:
    """Add one fact. A home that cannot be written remembers nothing."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with locked(memory.with_suffix(".flock")), replacing(memory) as stream:
            stream.write(orjson.dumps(remembered(memory) | {key: value}))
    except OSError:
        return
