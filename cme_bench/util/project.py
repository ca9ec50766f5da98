"""The project file ``cme-bench.toml``: where a project keeps its own tasks, and what its commands default to.

::

    include = ["tasks"]          # folders or files of task files, from this file's folder

    [plugins]                    # adapter methods of yours; their code runs in commands that load adapters
    gated = "input_gated.py"     # a file from this file's folder, or a module

    [defaults]                   # any option of any command, by its long name
    data = "data"
    limit = 200

It is looked for in the working folder and those above it. A flag on the command line always wins.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cme_bench.util.errors import UsageError, did_you_mean

NAME = "cme-bench.toml"
KEYS = frozenset({"include", "defaults", "plugins"})
PATHS = frozenset({"data", "out", "adapter"})
"""Defaults that may be paths from the file's folder (where such a path exists)."""
REFUSED = {
    "allow-code": "is only for the command line",  # a folder from elsewhere would then run its own code
    "plugin": "is no default: name plugins under [plugins]",
}
"""Options that a file must not set, and what it is told."""


@dataclass(frozen=True, slots=True)
class Project:
    """``include``: existing paths; ``plugins``: files by their paths, and modules; ``defaults``: option names
    without dashes, and values."""

    file: Path
    include: tuple[Path, ...]
    plugins: tuple[str, ...]
    defaults: Mapping[str, Any]


def find_project(folder: Path) -> Project | None:
    """Return the project of ``folder``; None if neither it nor any folder above has a project file."""
    for above in (folder, *folder.parents):
        file = above / NAME
        if file.is_file():
            return read_project(file)
    return None


def read_project(file: Path) -> Project:
    """Read a project file. Raises UsageError with the line for broken TOML, unknown keys and folders that are
    not there."""
    try:
        text = file.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise UsageError(f"{file}: broken project file ({err})") from err
    for key in values:
        if key not in KEYS:
            raise UsageError(f"{line_of(file, text, key)}: unknown key {key!r}{did_you_mean(key, KEYS)}")
    names, defaults = values.get("include", []), values.get("defaults", {})
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{line_of(file, text, 'include')}: 'include' must be a list of paths")
    if not isinstance(defaults, dict):
        raise UsageError(f"{line_of(file, text, 'defaults')}: 'defaults' must be a table")
    include = tuple(file.parent / name for name in names)
    for path in include:
        if not path.exists():
            raise UsageError(f"{line_of(file, text, 'include')}: {path}: no such file or folder")
    for key in defaults.keys() & REFUSED:
        raise UsageError(f"{line_of(file, text, key)}: {key!r} {REFUSED[key]}")
    plugins = tuple(_plugins(file, text, values.get("plugins", {})))
    return Project(file, include, plugins, {key: _path(file, key, value) for key, value in defaults.items()})


def _plugins(file: Path, text: str, given: Any) -> Iterator[str]:
    """Yield the names in [plugins], a file with its path; each value is one name or a list of them."""
    listed = given.values() if isinstance(given, dict) else [given]
    for value in listed:
        for name in value if isinstance(value, list) else [value]:
            if not isinstance(name, str):
                raise UsageError(f"{line_of(file, text, 'plugins')}: 'plugins' names files and modules")
            yield str(file.parent / name) if name.endswith(".py") else name


def _path(file: Path, key: str, value: Any) -> Any:
    if key in PATHS and isinstance(value, str) and (file.parent / value).exists():
        return str(file.parent / value)
    return value


def check_defaults(project: Project, known: Iterator[str]) -> None:
    """Raise UsageError for a default that is no option of any command."""
    names = set(known)
    for key in project.defaults:
        if key not in names:
            text = project.file.read_text(encoding="utf-8")
            raise UsageError(
                f"{line_of(project.file, text, key)}: no option --{key}{did_you_mean(key, names)}"
            )


def line_of(file: Path, text: str, key: str) -> str:
    """Return ``file:line`` of the first line that sets ``key``; TOML's parser keeps no lines."""
    found = re.search(rf"^\s*\[?[\"']?{re.escape(key)}[\"']?\s*[=.\]]", text, re.MULTILINE)
    return f"{file}:{text[: found.end()].count(chr(10)) + 1}" if found else str(file)
