"""Run folders below a folder, found without leaving it: links that lead out are named and not followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cme_bench.runs.owner import LOCK
from cme_bench.util.errors import UsageError
from cme_bench.util.files import leads_inside

DEEPEST = 8
"""Runs are looked for so many folders down."""
MOST_FOLDERS = 20_000
"""Folders that are looked into; a tree with more is no folder of runs."""
_NOT_LOOKED_INTO = frozenset({"samples", "__pycache__", "node_modules"})


@dataclass(slots=True)
class Found:
    """``runs``: the run folders, in the order of their names; ``notes``: what was not looked into, and why;
    ``others``: folders at the top that hold no run, by name."""

    runs: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def find_runs(root: Path) -> Found:
    """Return the run folders in ``root``, and ``root`` itself if it is one.

    A folder counts as a run if it has a ``run.json``, or a lock beside ``samples`` before there is one. Runs
    inside of runs, hidden folders and links out of ``root`` are not looked into. UsageError if there is no
    such folder.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; runs are written to --out, by default to runs/")
    found = Found()
    looked = 0
    work = [(root, 0)]
    while work:
        folder, depth = work.pop()
        looked += 1
        if looked > MOST_FOLDERS:
            found.notes.append(f"more than {MOST_FOLDERS} folders: the rest was not looked into")
            break
        names = list(_entries(folder, root, found))
        if is_run_folder(folder):
            found.runs.append(folder)
        elif depth < DEEPEST:
            work += [(folder / name, depth + 1) for name in reversed(names)]
        elif names:
            found.notes.append(f"{folder}: deeper than {DEEPEST} folders, not looked into")
    tops = {run.relative_to(root).parts[0] for run in found.runs if run != root}
    found.others = [name for name in _entries(root, root, Found()) if name not in tops]
    return found


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder is a run's, whatever its files hold."""
    return os.path.lexists(folder / "run.json") or (
        os.path.lexists(folder / LOCK) and (folder / "samples").is_dir()
    )


def _entries(folder: Path, root: Path, found: Found) -> Iterator[str]:
    """Yield the names of the folders in ``folder`` that may hold runs, in order."""
    try:
        with os.scandir(folder) as entries:
            folders = sorted((e for e in entries if e.is_dir()), key=lambda entry: entry.name)
    except OSError as error:
        found.notes.append(f"{folder}: cannot be read ({error.strerror or error})")
        return
    for entry in folders:
        if entry.name.startswith(".") or entry.name in _NOT_LOOKED_INTO:
            continue
        if entry.is_symlink():
            where = "to another place in it" if leads_inside(Path(entry.path), root) else f"out of {root}"
            found.notes.append(f"{entry.path}: a link {where}, not followed")
            continue
        yield entry.name
