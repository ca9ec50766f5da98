"""Where the runs of a command are stored, and which engine began those that are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from cme_bench.engines.logits import OVERFLOWED
from cme_bench.models.adapter import AdapterCheckpoint
from cme_bench.models.packaged import locate_adapter
from cme_bench.runs.manifest import default_folder
from cme_bench.runs.options import AskOptions
from cme_bench.runs.responder import Responder
from cme_bench.util.decode import decoded
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json

DEFAULT_ROOT = Path("runs")
BASE = "base"
"""The folder of the run without an adapter, beside those of adapters."""


class _BegunTask(Struct):
    limit: int | None = None


class _Computed(Struct):
    because: str = ""


class _Begun(Struct):
    """The parts of a ``run.json`` that say whether a command goes on with it."""

    identity: dict[str, Any]
    finished: bool = False
    tasks: Mapping[str, _BegunTask] = {}
    computed: _Computed = field(default_factory=_Computed)


def run_folder(
    options: AskOptions, responder: Responder, root: Path = DEFAULT_ROOT, engine: str | None = None
) -> Path:
    """Return ``--out``, with a folder for each of several adapters below it; else the default.

    ``engine``: where the run would be if that engine computed it.
    """
    if options.out is None:
        identity = responder.identity if engine is None else responder.identity_by(engine)
        return root / default_folder(options, responder.name, identity).name
    if len(options.adapters) < 2:
        return options.out
    if responder.adapter is None:
        return options.out / BASE
    if not isinstance(responder.adapter, AdapterCheckpoint):
        return options.out / responder.adapter.name
    named = [name for name in options.adapters if name is not None]
    return options.out / _distinct_names(named)[responder.adapter.path, responder.adapter.task]


def _distinct_names(adapters: Sequence[str]) -> dict[tuple[Path, int | None], str]:
    """Return a folder's name for each adapter; where two are alike, as many of its parents' names before it
    as tell them apart: ``seed1-adapter``, ``seed2-adapter``. Of hub names the owner is the parent."""
    places = [locate_adapter(adapter, offline=True) for adapter in adapters]  # fetched before
    parts = {(place.path, place.task): place.parts for place in places}
    names = {}
    for place, own in parts.items():
        depth = 1
        while any(other != place and theirs[-depth:] == own[-depth:] for other, theirs in parts.items()):
            depth += 1
        names[place] = "-".join(own[-depth:])
    return names


def check_distinct(folders: Sequence[Path]) -> None:
    """Raise UsageError if two runs would write one folder."""
    for folder in folders:
        if folders.count(folder) > 1:
            raise UsageError(f"two adapters would write {folder}: name their folders differently")


def overflowed(folder: Path) -> str | None:
    """Return why the run in ``folder`` is not computed in float16 any more; None if there is none, or it may
    be."""
    file = folder / "run.json"
    if not file.is_file():
        return None
    because = decoded(read_json(file), _Begun, str(file)).computed.because
    return because if because.startswith(OVERFLOWED) else None


def goes_on(folder: Path, engine: str, tasks: Iterable[str], options: AskOptions) -> bool:
    """Return whether a command that asks ``tasks`` goes on with the run in ``folder``, begun by ``engine``.

    It does with ``--out``, which holds one engine's answers. In a default folder it does with a run that was
    cut short, and with one that was asked the same.
    """
    file = folder / "run.json"
    if not file.is_file():
        return False
    run = decoded(read_json(file), _Begun, str(file))
    if run.identity.get("engine") != engine:
        return False
    if options.out is not None or not run.finished:
        return True
    return all(name in run.tasks and run.tasks[name].limit == options.limit for name in tasks)
