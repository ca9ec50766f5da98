"""An adapter folder named on the command line: what it is and how it wants to be asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from msgspec import UNSET

from cme_bench.models.base_revision import other_revision
from cme_bench.models.checkpoint import hash_checkpoint, hash_file
from cme_bench.models.packaged import locate_adapter
from cme_bench.models.records import AdapterRecord, CodeRecord
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json
from cme_bench.util.notes import Note, unheard

TRAINING_FILE = "cme_training.json"
"""The record that our trainer keeps beside an adapter: prompt format, mixture, arguments, time."""


@dataclass(frozen=True, slots=True)
class TrainedRows:
    """Rows of CME that an adapter was trained on: how many of the file ``split`` of a task."""

    task: str
    split: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter of a base model, known by identity.

    Attributes:
        name: What a run and a table call it.
        hash: Two adapters with one hash change a model alike. It counts the code of a method that is neither
            this package's nor PEFT's.
        prompt_format: The one it was trained with, if it says so.
        tokenization: How its training made token ids, as ``cme_training.json`` records it.
        record: Method, rank, experts, targets and sizes, as ``run.json`` records them.
        vocabulary: Token ids that the base's embeddings grow to; None if they stay.
        virtual_tokens: Positions that it takes for itself.
        notes: What a user should see; more of it is known once it is loaded.
        trained: The rows of CME that it was trained on, as ``cme_training.json`` records them.
    """

    name: str
    hash: str
    prompt_format: str | None
    record: AdapterRecord
    vocabulary: int | None = None
    virtual_tokens: int = 0
    notes: list[str] = field(default_factory=list)
    tokenization: dict[str, Any] = field(default_factory=dict)
    trained: tuple[TrainedRows, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AdapterCheckpoint(Adapter):
    """An adapter in a folder; its ``hash`` is the sha256 over weights and config. ``portable``: the name by
    which other machines find it; ``task``: that of all rows, of an adapter of several."""

    path: Path
    portable: str
    task: int | None = None


def hash_adapter(path: Path, code: CodeRecord | None, task: int | None) -> str:
    """Return the hash of an adapter's folder with what else decides what it computes, see ``Adapter``."""
    found = hash_checkpoint(path)
    config = read_json(path / "adapter_config.json", kind="an adapter")
    more = _experts(path) if str(config.get("peft_type")).upper() == "XLORA" else []
    if more:  # experts that lie in folders of their own
        found = hashlib.sha256(":".join([found, *map(hash_file, more)]).encode()).hexdigest()
    if code is not None:
        found = hashlib.sha256(f"{found}:{code.hash}".encode()).hexdigest()
    if task is not None:
        found = hashlib.sha256(f"{found}:task={task}".encode()).hexdigest()
    return found


def _experts(path: Path) -> list[Path]:
    from cme_bench.adapters.xlora import files_of

    return files_of(path)


def resolve_adapter(
    name: str, base_config: Any, *, offline: bool = False, note: Note = unheard
) -> AdapterCheckpoint:
    """Resolve the adapter that ``name`` names, described for the base model with ``base_config``.

    ``name`` is a folder, a hub name, or an adapter that ships with this package, see ``packaged``; ``note``
    is told of what is done to find it. The adapter's tensors are read, not kept. Raises UsageError if it is
    no readable adapter folder, does not fit the base, or is no numbers, and as ``locate_adapter``.
    """
    from cme_bench.adapters import registry
    from cme_bench.adapters.describe import describe
    from cme_bench.adapters.examine import examine
    from cme_bench.adapters.load import check_numbers
    from cme_bench.adapters.meta_model import kept_model

    place = locate_adapter(name, offline=offline, note=note)
    path = place.path
    training = read_training(path)
    asked = examine(kept_model(base_config), path, task=place.task)
    check_numbers(path, asked.config)
    found = describe(path, base_config)
    code = None
    if (method := registry.find(found.method.upper())) is not None and method.code is not None:
        code = CodeRecord(file=method.code.file, hash=method.code.hash)
    hash_ = hash_adapter(path, code, place.task)
    record = AdapterRecord(
        name=place.label,
        path=str(path),
        hash=hash_,
        method=found.method,
        rank=found.rank,
        experts=found.experts,
        targets=list(found.targets),
        parameters=found.trainable_parameters,
        percent=found.percent_of_base,
        settings=found.settings,
        config=found.config,
        training=training_arguments(training),
        training_seconds=own_seconds(training),
        tokens_trained=training.get("tokens_trained"),
        code=code or UNSET,
        revision=place.revision or UNSET,
        hub=place.hub or UNSET,
        task=UNSET if place.task is None else place.task,
        percent_language=UNSET
        if found.percent_of_language_model is None
        else found.percent_of_language_model,
    )
    return AdapterCheckpoint(
        name=place.label,
        path=path,
        portable=place.portable,
        task=place.task,
        hash=hash_,
        prompt_format=training.get("prompt_format"),
        record=record,
        vocabulary=asked.vocabulary,
        virtual_tokens=asked.virtual_tokens,
        notes=[*asked.notes, *other_revision(path, asked.config, str(base_config.name_or_path))],
        tokenization=training.get("tokenization") or {},
        trained=trained_rows(training),
    )


def trained_rows(training: Mapping[str, Any]) -> tuple[TrainedRows, ...]:
    """Return the rows of CME that a training record names, without those of which none was kept."""
    mixture = training.get("mixture")
    sets = mixture.get("datasets") if isinstance(mixture, Mapping) else None
    parts = [part for each in sets or () for part in each.get("parts") or ()]
    return tuple(
        TrainedRows(str(part["task"]), str(part["split"]), int(part["kept"]))
        for part in parts
        if part.get("task") and part.get("split") and part.get("kept")
    )


def own_seconds(training: Mapping[str, Any]) -> float | None:
    """Return the seconds of a training; None where it shared them with others (``cme-bench sweep``)."""
    return None if training.get("together", 1) > 1 else training.get("seconds")


def training_arguments(training: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of a training that decide what is trained, but for its seed; None if unrecorded.

    The data stand there by the hashes of their files, since a folder's name says nothing of them.
    """
    arguments = training.get("arguments")
    if not isinstance(arguments, Mapping):
        return None
    identity = training.get("identity") or {}
    kept = {key: value for key, value in arguments.items() if key not in _NOT_ARGUMENTS}
    kept |= {key: identity[key] for key in ("data", "processes") if key in identity}
    if kept.get("quantize") is None:
        kept.pop("quantize", None)  # as in adapters that are older than the option
    return kept | {"bos": identity.get("bos")}  # None: what the tokenizer adds by itself


_NOT_ARGUMENTS = frozenset(
    {
        "model",
        "data",
        "out",
        "seed",
        "save_every",
        "log_every",
        "offline",
        "checkpointing",
        "bos",
        "device_map",
    }
)


def read_training(path: Path) -> dict[str, Any]:
    """Return the training record beside an adapter; empty if there is none. UsageError if it is broken."""
    file = path / TRAINING_FILE
    if not file.is_file():
        return {}
    try:
        content = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{file}: broken JSON ({error})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file}: not a JSON object")
    return content
