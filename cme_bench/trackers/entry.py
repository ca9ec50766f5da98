"""One entry of a tracker: its settings, and the calls that it understands."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cme_bench.util.files import read_json, write_json

FILE = "trackers.json"
"""In the folder of a training or a run: under which id trackers know it."""


class Tracker(Protocol):
    """One entry of a tracker, open until ``close``."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add numbers by name, at a step."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table."""

    def close(self) -> None:
        """Finish the entry."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One training or evaluation, as trackers keep it.

    ``folder``: where it is on this machine; ``id``: the same over all resumes; ``config``: its settings,
    flat; ``offline``: whether the network must not be used; ``last_step``: of what was logged before.
    """

    project: str
    id: str
    folder: Path
    config: Mapping[str, Any]
    offline: bool = False
    last_step: int = 0

    @property
    def name(self) -> str:
        """Its folder's name, told from others of that name by its id."""
        return f"{self.folder.resolve().name}-{self.id[:6]}"


def entry_id(folder: Path) -> str:
    """Return the id under which trackers know ``folder``; a new one the first time."""
    file = folder / FILE
    if file.exists():
        return str(read_json(file)["id"])
    made = secrets.token_hex(8)
    write_json(file, {"id": made})
    return made


def reported(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what each tracker was told of ``folder``, as ``write_reported`` wrote it."""
    file = folder / FILE
    found: dict[str, dict[str, Any]] = read_json(file).get("reported", {}) if file.exists() else {}
    return found


def write_reported(folder: Path, told: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what each tracker was told."""
    write_json(folder / FILE, {"id": entry_id(folder), "reported": told})


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested settings by their paths, as ``model/name``; lists become texts, and None is left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}/")
        elif value is not None:
            found[name] = value if isinstance(value, str | int | float) else ", ".join(map(str, value))
    return found
