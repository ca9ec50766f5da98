"""Adapters that ship with this package, by name: ``teamlora-demo``, a small TeamLoRA on ``smollm2``."""

from __future__ import annotations

from pathlib import Path

from cme_bench.util.errors import UsageError, did_you_mean

FOLDER = Path(__file__).resolve().parent.parent / "data" / "adapters"


def packaged() -> list[str]:
    """Return the names of the adapters that ship with this package."""
    return sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())


def adapter_folder(name: str | Path) -> Path:
    """Return the folder of an adapter: a folder's path, or the name of one that ships with this package.

    Raises UsageError if there is neither, or if a folder here has the name of an adapter of ours.
    """
    name, path, ours = str(name), Path(name).expanduser(), packaged()
    if name not in ours:
        if path.is_dir():
            return path.resolve()
        raise UsageError(f"adapter {name}: no such folder{did_you_mean(name, ours)}")
    if path.is_dir():
        raise UsageError(
            f"adapter {name}: the folder here, or the adapter that ships with cme-bench? "
            f"Write ./{name} for the folder, {FOLDER / name} for the other"
        )
    return FOLDER / name
