"""Scores of a run's items without texts, in one small file: ``scores.json`` of a packed run folder.

Of each task, in ascending order of the items that ``run.json`` speaks of: ``gold`` is four bytes an item, the
first of the sha256 of its right answer, so that two runs can be paired. A metric whose values are all 0 or 1
is ``bits`` (the first item is the highest bit of the first byte); other numbers are ``float64`` (little
endian); anything else stands as ``values`` (null: the item has no such metric). Bytes are written as base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from cme_bench.scoring.record import Count, Record, StoredResponse
from cme_bench.util.decode import decoded
from cme_bench.util.errors import UsageError
from cme_bench.util.files import MOST_JSON, open_regular, read_json

_GOLD_BYTES = 4
_DIGEST = "sha256:"


class PackedMetric(Struct, frozen=True, omit_defaults=True):
    """The values of one metric; one of the three is there."""

    bits: str | None = None
    float64: str | None = None
    values: list[Any] | None = None


class PackedTask(Struct, frozen=True, kw_only=True):
    """``n`` items of one task, scored under its version ``hash``."""

    hash: str
    n: Count
    gold: str
    scores: dict[str, PackedMetric]


class PackedScores(Struct, frozen=True, kw_only=True):
    """``scores.json``."""

    schema: int = 1
    tasks: dict[str, PackedTask]


class _Unread(Struct, frozen=True):
    """``scores.json``, of which one task is to be read: all are many times its work."""

    tasks: dict[str, msgspec.Raw]


def scores_file(folder: Path) -> Path:
    """Return where a packed run folder keeps the scores of its items."""
    return folder / "scores.json"


def refuse_packed(folder: Path) -> None:
    """Raise UsageError if the run was packed: prompts and responses were not kept."""
    if scores_file(folder).is_file() and not any(folder.glob("samples/*.jsonl")):
        raise UsageError(f"{folder}: a packed run; its scores were kept, but no prompts and responses")


def packed_task(records: Sequence[Record], hash_: str) -> PackedTask:
    """Return what is kept of the records of a task, which are in ascending order of their ids."""
    metrics = dict.fromkeys(name for record in records for name in record.scores)
    return PackedTask(
        hash=hash_,
        n=len(records),
        gold=_text(b"".join(bytes.fromhex(gold_digest(record).removeprefix(_DIGEST)) for record in records)),
        scores={name: _packed([record.scores.get(name) for record in records]) for name in metrics},
    )


def gold_digest(record: Record) -> str:
    """Return ``sha256:`` and eight digits that stand for the right answer of an item, packed or not."""
    if packed(record):
        return record.target
    return _DIGEST + hashlib.sha256(record.target.encode()).digest()[:_GOLD_BYTES].hex()


def packed(record: Record) -> bool:
    """Return whether the record comes from a packed run, without texts: such a one has no key."""
    return not record.key


def _packed(values: Sequence[Any]) -> PackedMetric:
    if all(type(value) is float for value in values):
        numbers = np.array(values, dtype="<f8")
        if np.isin(numbers, (0.0, 1.0)).all():
            return PackedMetric(bits=_text(np.packbits(numbers.astype(bool)).tobytes()))
        return PackedMetric(float64=_text(numbers.tobytes()))
    return PackedMetric(values=list(values))


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def packed_records(folder: Path, task: str, ids: Sequence[int]) -> list[Record]:
    """Return a record for each of ``ids``: its scores, the digest of its right answer, and no text.

    UsageError if the file is damaged, lacks the task, or holds another number of items.
    """
    file, kept = scores_file(folder), _kept(folder, task)
    if kept.n != len(ids):
        raise UsageError(f"{file}: {task} has {kept.n} items, run.json speaks of {len(ids)}")
    place = f"{file}: tasks: {task}"
    gold = _bytes(kept.gold, _GOLD_BYTES * kept.n, f"{place}: gold").hex()
    columns = {name: _values(m, kept.n, f"{place}: scores: {name}") for name, m in kept.scores.items()}
    return [
        Record(
            id=id_,
            key="",
            task=kept.hash,
            scores={name: column[i] for name, column in columns.items() if column[i] is not None},
            response=StoredResponse(text=""),
            target=_DIGEST + gold[2 * _GOLD_BYTES * i :][: 2 * _GOLD_BYTES],
            truncated=0,
            prompt="",
            choices=[],
            doc={},
        )
        for i, id_ in enumerate(ids)
    ]


def _kept(folder: Path, task: str) -> PackedTask:
    """Return what was kept of one task; UsageError as :func:`packed_records` has it."""
    file = scores_file(folder)
    try:
        with open_regular(file, inside=folder) as stream:
            unread = msgspec.json.decode(stream.read(MOST_JSON + 1), type=_Unread).tasks
        if task in unread:
            return msgspec.json.decode(unread[task], type=PackedTask)
    except (OSError, msgspec.DecodeError):
        pass  # found again below, with its place
    tasks = decoded(read_json(file, inside=folder), PackedScores, str(file)).tasks
    if task not in tasks:
        raise UsageError(f"{file}: no scores of {task} were kept")
    return tasks[task]


def _values(metric: PackedMetric, n: int, place: str) -> list[Any]:
    if metric.bits is not None:
        raw = np.frombuffer(_bytes(metric.bits, -(-n // 8), f"{place}: bits"), np.uint8)
        return list(np.unpackbits(raw, count=n).astype(float).tolist())
    if metric.float64 is not None:
        return list(np.frombuffer(_bytes(metric.float64, 8 * n, f"{place}: float64"), "<f8").tolist())
    values = metric.values
    if values is None or len(values) != n:
        raise UsageError(f"{place}: must be bits, float64 or {n} values")
    return values


def _bytes(text: str, length: int, place: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{place}: no base64 ({error})") from error
    if len(content) != length:
        raise UsageError(f"{place}: {len(content)} bytes, not {length}")
    return content


def same_gold(records: Iterable[Record]) -> bool:
    """Return whether all these records of one item have the same right answer, as far as each tells."""
    every = list(records)
    if len({record.target for record in every}) == 1:
        return True
    return any(map(packed, every)) and len({gold_digest(record) for record in every}) == 1
