"""The settings of an earlier run, to repeat it: everything that it was asked, and that is still there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cme_bench.models.bundled import BUNDLED
from cme_bench.models.packaged import packaged
from cme_bench.models.task_name import split_task
from cme_bench.runs.folder import read_run
from cme_bench.runs.records import RunRecord
from cme_bench.util.errors import UsageError

_NOT_REPEATED = frozenset({"out", "command", "allow_code"})
"""Where it wrote, how it was called, and what only the command line decides."""


def settings_of(folder: Path, known: Collection[str]) -> dict[str, Any]:
    """Return the settings of the run in ``folder`` by the names of options; ``known`` are those of today.

    Raises UsageError if the folder is no run, if the model was one in memory, and for what is no more: an
    option, the model, the adapter, a folder of rows or of task files.
    """
    run = read_run(folder)
    given = dict(run.arguments or {})
    if not given.get("model"):
        raise UsageError(f"--from {folder}: its run.json does not say what it was asked")
    if run.model.path is None and given.get("engine") != "server":
        raise UsageError(
            f"--from {folder}: its model was one in memory, {run.model.name}, which no option names: repeat "
            "it from Python"
        )
    if given.get("allow_code"):
        raise UsageError(
            f"--from {folder}: it ran code of its task files; write its options out, with --allow-code"
        )
    for name, value in given.items():
        if name not in known and name not in _NOT_REPEATED and value not in (None, False, [], {}, "auto"):
            raise UsageError(f"--from {folder}: its setting {name} = {value!r} is no option of this version")
    settings = {k: v for k, v in given.items() if k in known and k not in _NOT_REPEATED}
    settings["adapters"] = _own_adapter(folder, run, settings.get("adapters") or [])
    _check_there(folder, run, settings)
    return settings


def _own_adapter(folder: Path, run: RunRecord, named: list[str | None]) -> list[str]:
    """Return the adapter of this run alone, as it was named; a command may have named several."""
    own = run.adapter
    if own is None:
        return []
    adapters = [name for name in named if name is not None]
    if len(adapters) > 1:
        hub = own.hub if isinstance(own.hub, str) else None
        alike = {own.path, own.name, hub}
        adapters = [n for n in adapters if n in alike or str(Path(n).expanduser().resolve()) == own.path]
    if len(adapters) != 1:
        raise UsageError(f"--from {folder}: which of its adapters was {own.name}? Give it with --adapter")
    return adapters


def _check_there(folder: Path, run: RunRecord, settings: Mapping[str, Any]) -> None:
    """Raise UsageError for a path that the run was given and that is gone; hub names are looked up later."""
    places: list[tuple[str, str]] = []
    if settings["model"] not in BUNDLED and run.model.revision is None:
        places.append(("model", str(settings["model"])))
    if run.adapter is not None and not isinstance(run.adapter.revision, str):
        names = [split_task(name)[0] for name in settings["adapters"]]
        places += [("adapter", name) for name in names if name not in packaged()]
    if settings.get("data", "hub") not in ("hub", "mini"):
        places.append(("data", str(settings["data"])))
    places += [("include", str(path)) for path in settings.get("include") or ()]
    for what, place in places:
        if not Path(place).expanduser().exists():
            raise UsageError(f"--from {folder}: its {what} {place} is not there any more")
