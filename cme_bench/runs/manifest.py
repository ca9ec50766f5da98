"""``run.json``: what was run, with what, by which command, and how long it took over all resumes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from msgspec import UNSET, Struct, UnsetType

from cme_bench.engines.base import Engine
from cme_bench.runs.identity import short
from cme_bench.runs.options import AskOptions, arguments
from cme_bench.runs.records import (
    BosRecord,
    ComputedRecord,
    Identity,
    RunRecord,
    SessionRecord,
    TaskRecord,
)
from cme_bench.util.decode import decoded, without_absent
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json, write_json
from cme_bench.util.provenance import commit, machine, versions, without_secrets

if TYPE_CHECKING:
    from cme_bench.runs.responder import Responder

SAVE_SECONDS = 2.0
_ASKED = ("thinking", "thinking_budget", "max_new_tokens", "temperature", "top_p", "top_k", "repeats")
"""Options that ask otherwise; a default folder is another one where they are given."""


class _Resumed(Struct):
    """The parts of an earlier ``run.json`` that a resumed run reads."""

    identity: dict[str, Any]
    sessions: list[SessionRecord] | None = None


def default_folder(options: AskOptions, model: str, identity: Mapping[str, str]) -> Path:
    """Return ``runs/MODEL-HASH``: the same for the same answering model and settings, so that the same
    command resumes; limit, shots and tasks share it, since their items are stored by key."""
    parts: list[Any] = [*sorted(identity.items()), options.data, options.prompt_format, options.seed]
    asked = [(name, value) for name in _ASKED if (value := getattr(options, name)) not in (None, "auto")]
    parts += [asked] if asked else []
    digest = hashlib.sha256(orjson.dumps(parts)).hexdigest()
    return Path("runs") / f"{model}-{digest[:8]}"


class Manifest:
    """``run.json`` while a run goes on. Its ``sessions`` get one entry for every start."""

    def __init__(self, file: Path, run: RunRecord) -> None:
        self.file = file
        self.run = run
        self.unanswered: dict[str, dict[int, str]] = {}
        """By task and item: what the last worker died of that was asked it."""
        self._session = SessionRecord(started=datetime.now(UTC).isoformat(timespec="seconds"))
        self.run.sessions.append(self._session)
        self._started = time.monotonic()
        self._saved = 0.0

    @classmethod
    def open(cls, folder: Path, options: AskOptions, responder: Responder) -> Manifest:
        """Open the manifest of ``folder``, new or resumed. UsageError if it holds another model's run."""
        file = folder / "run.json"
        identity = Identity(**responder.identity, data=options.data, prompt_format=options.prompt_format)
        run = RunRecord(
            identity=identity,
            model=responder.model.describe(),
            adapter=responder.adapter.record if responder.adapter else None,
            arguments={k: _plain(v) for k, v in arguments(responder.engines.options, options).items()},
            seed=options.seed,
            bos=BosRecord(**responder.encoder.bos.describe()),
            versions=versions(),
            commit=commit(),
            machine=machine(),
            sessions=_earlier_sessions(file, identity, overflowed=responder.overflowed is not None),
            engine_because=responder.engines.because or UNSET,
            computed=_computed(responder),
        )
        return cls(file, run)

    def plan(self, tasks: Mapping[str, TaskRecord]) -> None:
        """Record the tasks of this run."""
        self.run.tasks = dict(tasks)
        self.save(None, more=True)

    def note(self, notes: Sequence[str]) -> None:
        """Record what a user must know of how the prompts are made."""
        self.run.notes = list(notes)

    def count(self, items: int, engine: Engine | None) -> None:
        """Count ``items`` more; saved now and then, so that a killed run keeps its time."""
        if self._session.first_answer is None:
            self._session.first_answer = round(time.monotonic() - self._started, 3)
        self._session.items += items
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save(engine, more=True)

    def finish(self) -> None:
        """Mark the run as finished unless items have no answer."""
        self.run.finished = not self.unanswered

    def unanswered_lines(self) -> Iterator[str]:
        """Yield ``task, item id (reason)`` of every item without an answer."""
        for task, items in self.unanswered.items():
            yield from (f"{task}, item {id_} ({reason})" for id_, reason in items.items())

    def save(self, engine: Engine | None, *, more: bool = False) -> None:
        """Write ``run.json``; ``more``: it will be written again."""
        self._session.seconds = round(time.monotonic() - self._started, 3)
        if engine is not None:
            self.run.engine = engine.describe()
            self._session.engine = engine.stats
        self.run.unanswered = {
            task: {str(id_): reason for id_, reason in items.items()}
            for task, items in self.unanswered.items()
        }
        write_json(self.file, self.run, to_disk=not more)
        self._saved = time.monotonic()


def _computed(responder: Responder) -> ComputedRecord | UnsetType:
    found = responder.computed
    if found is None:
        return UNSET
    return ComputedRecord(asked=responder.model.dtype_name, dtype=found.dtype, because=found.because)


def _earlier_sessions(file: Path, identity: Identity, *, overflowed: bool) -> list[SessionRecord]:
    """Return the sessions of a run that is resumed. UsageError if it has another identity.

    One that was begun in float16 goes on in bfloat16 if it ``overflowed``; its answers have other keys.
    """
    if not file.exists():
        return []
    old = decoded(read_json(file), _Resumed, str(file))
    before = {"logits": old.identity.get("dtype")} | old.identity  # as earlier versions had them: rounded
    if overflowed and before.get("states") == "float16":
        del before["states"]
    wanted = without_absent(identity)
    absent = {name: wanted.get(name) for name in ("quantised", "tokenizer", "states")}
    for part, value in (wanted | absent).items():
        if (held := before.get(part)) != value:
            raise UsageError(
                f"{file.parent} holds a run with {part} {short(held)}, not {short(value)}; "
                "name another folder with --out"
            )
    return old.sessions or []


def _plain(value: Any) -> Any:
    if isinstance(value, Path | str):
        return without_secrets(str(value))
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value
