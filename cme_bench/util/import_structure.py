"""The map of transformers' classes to their modules, kept on disk: it would read 1,600 files for it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cme_bench.util.paths import cache_folder

Read = Callable[[Any], dict[Any, Any]]
"""``create_import_structure_from_path``: a folder, or a file for its folder, to a nested dict. Its keys are
names of folders, and frozensets of what the modules need; the values of these are sets of names by module."""


def kept_structure(read: Read) -> Read:
    """Return ``read``, with what it says of the folder ``models`` of an installed transformers kept.

    Kept for one installation: another version or place, or files that came or went, are read anew. A file
    that is missing, torn or cannot be written makes it read as ever.
    """

    def kept(module_path: Any) -> dict[Any, Any]:
        place = Path(module_path)
        folder = place.parent if place.name == "__init__.py" else place
        file = _file(folder) if folder.name == "models" else None
        if file is None:
            return read(module_path)
        try:
            return _decoded(json.loads(file.read_text()))
        except (OSError, ValueError, TypeError, AttributeError, LookupError):
            found = read(module_path)
        _write(file, json.dumps(_encoded(found)))
        return found

    return kept


def _file(folder: Path) -> Path | None:
    """Return where the structure of this installation is kept; None for one that is not a wheel's."""
    records = list(folder.parent.parent.glob("transformers-*.dist-info/RECORD"))
    if len(records) != 1:
        return None
    facts = [str(folder), *((stat.st_mtime_ns, stat.st_size) for stat in (records[0].stat(), folder.stat()))]
    name = hashlib.sha256(repr([records[0].parent.name, *facts]).encode()).hexdigest()[:16]
    return cache_folder() / "imports" / f"{name}.json"


def _write(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text)
        part.replace(file)
    except OSError:
        with suppress(OSError):
            part.unlink()


def _encoded(structure: dict[Any, Any]) -> dict[str, Any]:
    """Return a structure as JSON: what each folder has under ``folders``, and lists for sets."""
    modules = [
        [sorted(needs), {module: sorted(names) for module, names in found.items()}]
        for needs, found in structure.items()
        if isinstance(needs, frozenset)
    ]
    folders = {name: _encoded(inner) for name, inner in structure.items() if isinstance(name, str)}
    return {"modules": modules, "folders": folders}


def _decoded(kept: dict[str, Any]) -> dict[Any, Any]:
    modules = {
        frozenset(needs): {module: set(names) for module, names in found.items()}
        for needs, found in kept["modules"]
    }
    return modules | {name: _decoded(inner) for name, inner in kept["folders"].items()}
