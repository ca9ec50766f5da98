"""``run.json``: what was run, with what, by which command, and how long it took over all resumes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from cme_bench.engines.base import Engine
from cme_bench.errors import UsageError
from cme_bench.provenance import commit, machine, versions, without_secrets
from cme_bench.runs.options import AskOptions, arguments
from cme_bench.runs.shape import ListOf, Maybe, check_shape
from cme_bench.util.files import read_json, write_json

if TYPE_CHECKING:
    from cme_bench.runs.responder import Responder

SCHEMA = 1
SAVE_SECONDS = 2.0
_RESUMED = {"identity": dict, "sessions": Maybe(ListOf({"seconds": float}))}
"""What is read of an earlier ``run.json``."""


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """One task as ``run.json`` records it. ``n`` of the split's ``rows`` are scored; ``truncated`` prompts
    were cut to fit."""

    domain: str
    dataset: str
    primary: str
    output_type: str
    hash: str
    n: int
    rows: int
    limit: int | None
    shots: int
    prompt_format: str
    policy: str
    source: str
    origin: str
    revision: str | None
    truncated: int


def default_folder(options: AskOptions, model: str, identity: Mapping[str, str]) -> Path:
    """``runs/MODEL-HASH``: the same for the same answering model and settings, so that the same command
    resumes; limit, shots and tasks share it, since their items are stored by key."""
    parts = [*sorted(identity.items()), options.data, options.prompt_format, options.seed]
    digest = hashlib.sha256(orjson.dumps(parts)).hexdigest()
    return Path("runs") / f"{model}-{digest[:8]}"


class Manifest:
    """The contents of ``run.json`` while a run goes on. ``sessions`` holds one entry for every start."""

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        self.file = file
        self.content = content
        self.tasks: dict[str, PlannedTask] = {}
        self.unanswered: dict[str, dict[int, str]] = {}
        """By task and item: what the last worker died of that was asked it."""
        self._session: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "items": 0,
        }
        self.content["sessions"].append(self._session)
        self._started = time.monotonic()
        self._saved = 0.0

    @classmethod
    def open(cls, folder: Path, options: AskOptions, responder: Responder) -> Manifest:
        """The manifest of ``folder``, new or resumed. UsageError if the folder holds another model's run."""
        file = folder / "run.json"
        identity = responder.identity | {"data": options.data, "prompt_format": options.prompt_format}
        sessions: list[Any] = []
        if file.exists():
            old = read_json(file)
            check_shape(old, _RESUMED, str(file))
            sessions = old.get("sessions") or []
            before = old["identity"]
            before = {"logits": before.get("dtype")} | before  # as earlier versions had them: rounded
            for part, value in identity.items():
                if (held := before.get(part)) != value:
                    raise UsageError(
                        f"{folder} holds a run with {part} {_short(held)}, not {_short(value)}; "
                        "name another folder with --out"
                    )
        content = {
            "schema": SCHEMA,
            "identity": identity,
            "model": responder.model.describe(),
            "adapter": responder.adapter.description if responder.adapter else None,
            "arguments": {k: _plain(v) for k, v in arguments(responder.engines.options, options).items()},
            "seed": options.seed,
            "bos": responder.encoder.bos.describe(),
            "notes": [],
            "versions": versions(),
            "commit": commit(),
            "machine": machine(),
            "engine": {},
            "tasks": {},
            "unanswered": {},
            "finished": False,
            "sessions": sessions,
        }
        return cls(file, content)

    def plan(self, tasks: Mapping[str, PlannedTask]) -> None:
        """Record the tasks of this run."""
        self.tasks = dict(tasks)
        self.content["tasks"] = {name: asdict(task) for name, task in tasks.items()}
        self.save(None)

    def note(self, notes: Sequence[str]) -> None:
        """Record what a user must know of how the prompts are made."""
        self.content["notes"] = list(notes)

    def count(self, items: int, engine: Engine | None) -> None:
        """``items`` more were computed; saved now and then, so that a killed run keeps its time."""
        self._session["items"] += items
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save(engine)

    def finish(self) -> None:
        """All tasks are done; the run is finished unless items have no answer."""
        self.content["finished"] = not self.unanswered

    def unanswered_lines(self) -> Iterator[str]:
        """``task, item id (reason)`` of every item without an answer."""
        for task, items in self.unanswered.items():
            yield from (f"{task}, item {id_} ({reason})" for id_, reason in items.items())

    def save(self, engine: Engine | None) -> None:
        """Write ``run.json``."""
        self._session["seconds"] = round(time.monotonic() - self._started, 3)
        if engine is not None:
            self.content["engine"] = engine.describe()
            self._session["engine"] = asdict(engine.stats)
        self.content["unanswered"] = {
            task: {str(id_): reason for id_, reason in items.items()}
            for task, items in self.unanswered.items()
        }
        write_json(self.file, self.content)
        self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time over all sessions."""
        return float(sum(session["seconds"] for session in self.content["sessions"]))


def _short(value: object) -> str:
    text = str(value)
    return text[:8] if len(text) == 64 else text


def _plain(value: Any) -> Any:
    if isinstance(value, Path | str):
        return without_secrets(str(value))
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value
