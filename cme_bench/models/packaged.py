"""Where adapters are: folders, those of the hub, and ``teamlora-demo``, which ships with this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cme_bench.models.checkpoint import fetched_origin, folder_or_snapshot
from cme_bench.models.hub_fetch import Role, Snapshot
from cme_bench.models.hub_name import parse_hub_name
from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.notes import Note, unheard

FOLDER = Path(__file__).resolve().parent.parent / "data" / "adapters"


def packaged() -> list[str]:
    """Return the names of the adapters that ship with this package."""
    return sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())


def adapter_folder(
    name: str | Path, *, offline: bool = False, role: Role = "adapter", note: Note = unheard
) -> Path:
    """Return the folder of an adapter, as ``locate_adapter`` finds it."""
    return locate_adapter(name, offline=offline, role=role, note=note).path


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """Where an adapter is. ``label``: its name in runs and tables; ``revision``: the hub's commit, ``hub``:
    the hub name, of one that came from there; ``cached``: whether it lies in the hub's own cache."""

    path: Path
    label: str
    revision: str | None = None
    hub: str | None = None
    cached: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Return what tells it from others of its name, the last part the name itself."""
        return (str(self.hub).partition("/")[0], self.label) if self.cached else self.path.parts

    @property
    def portable(self) -> str:
        """Return the name by which other machines find it: its folder, or a hub name at its commit."""
        name = parse_hub_name(self.hub) if self.cached and self.hub else None
        return str(self.path) if name is None else str(name.at(str(self.revision)))


def locate_adapter(
    name: str | Path, *, offline: bool = False, role: Role = "adapter", note: Note = unheard
) -> AdapterPlace:
    """Find an adapter: a folder, the name of one that ships with this package, or a hub name.

    A hub name is fetched at its locked commit, or taken from what was fetched before. Raises UsageError if
    there is none, if a folder here has the name of an adapter of ours, and as ``fetch_snapshot``.
    """
    name, path, ours = str(name), Path(name).expanduser(), packaged()
    if name not in ours:
        if not path.is_dir() and (near := did_you_mean(name, ours)):
            raise UsageError(f"adapter {name}: no such folder{near}")
        found = folder_or_snapshot(name, role, offline=offline, note=note)
        if isinstance(found, Snapshot):
            return AdapterPlace(found.folder, found.name.label, found.commit, str(found.name), cached=True)
        origin = fetched_origin(found)
        return AdapterPlace(found, found.name, origin.get("revision"), origin.get("id"))
    if path.is_dir():
        raise UsageError(
            f"adapter {name}: the folder here, or the adapter that ships with cme-bench? "
            f"Write ./{name} for the folder, {FOLDER / name} for the other"
        )
    return AdapterPlace(FOLDER / name, name)
