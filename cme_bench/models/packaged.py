"""Where adapters are: folders, those of the hub, and ``teamlora-demo``, which ships with this package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cme_bench.models.checkpoint import fetched_origin, folder_or_snapshot
from cme_bench.models.hub_fetch import Role, Snapshot
from cme_bench.models.hub_name import parse_hub_name
from cme_bench.models.task_name import split_task, with_task
from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.notes import Note, unheard

FOLDER = Path(__file__).resolve().parent.parent / "data" / "adapters"


def packaged() -> list[str]:
    """Return the names of the adapters that ship with this package."""
    return sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())


def adapter_folder(
    name: str | Path, *, offline: bool = False, role: Role = "adapter", note: Note = unheard
) -> Path:
    """Return the folder of an adapter, as ``locate_adapter`` finds it. UsageError if a task is named."""
    found = locate_adapter(name, offline=offline, role=role, note=note)
    if found.task is not None:
        raise UsageError(
            f"adapter {name}: a task is chosen where the adapter answers (run, cme-hf); leave it out"
        )
    return found.path


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """Where an adapter is. ``label``: its name in runs and tables; ``revision``: the hub's commit, ``hub``:
    the hub name, of one that came from there; ``cached``: whether it lies in the hub's own cache; ``task``:
    that of all rows, where the name gives one."""

    path: Path
    label: str
    revision: str | None = None
    hub: str | None = None
    cached: bool = False
    task: int | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Return what tells it from others of its name, the last part the name itself."""
        owner = (str(self.hub).partition("/")[0],) if self.cached else self.path.parts[:-1]
        return *owner, self.label

    @property
    def portable(self) -> str:
        """Return the name by which other machines find it: its folder, or a hub name at its commit."""
        name = parse_hub_name(self.hub) if self.cached and self.hub else None
        found = str(self.path) if name is None else str(name.at(str(self.revision)))
        return with_task(found, self.task)


def locate_adapter(
    name: str | Path, *, offline: bool = False, role: Role = "adapter", note: Note = unheard
) -> AdapterPlace:
    """Find an adapter: a folder, the name of one that ships with this package, or a hub name.

    A hub name is fetched at its locked commit, or taken from what was fetched before. ``#task=N`` at the end
    chooses a task of an adapter that has several. Raises UsageError if there is none, if a folder here has
    the name of an adapter of ours, and as ``fetch_snapshot``.
    """
    plain, task = split_task(str(name))
    found = _locate(plain, offline, role, note)
    return found if task is None else replace(found, label=with_task(found.label, task), task=task)


def _locate(name: str, offline: bool, role: Role, note: Note) -> AdapterPlace:
    path, ours = Path(name).expanduser(), packaged()
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
