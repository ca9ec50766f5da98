"""The parts of a mixture, as ``--data`` names them: ``[NAME=]PLACE[=WEIGHT]``, once or several times.

NAME says what the rows are: ``cme`` (the datasets of CME), ``rows`` (rows of one's own), or a published file
of rows (:mod:`cme_bench.training.published`). Without it the place decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cme_bench.authoring.table_files import SUFFIXES
from cme_bench.models.hub_lock import LOCK_NAME
from cme_bench.tasks.packed import form_of
from cme_bench.training.published import PUBLISHED
from cme_bench.util.errors import UsageError, did_you_mean

CME, ROWS, HUB = "cme", "rows", "hub:"
NAMES = (CME, ROWS, *PUBLISHED)
_SCORED = frozenset({"test", "validation", "valid", "val", "dev", "eval", "evaluation"})
"""Names of splits that nobody trains on."""


@dataclass(frozen=True, slots=True)
class DataPart:
    """One part of a mixture. ``kind``: one of NAMES; ``place``: where its rows are; ``files``: the files of
    one's own rows (none if they are on the hub); ``left_out``: files beside them that are another split."""

    kind: str
    place: str
    weight: float | None = None
    files: tuple[Path, ...] = ()
    left_out: tuple[Path, ...] = ()


def data_parts(data: str | Sequence[str]) -> list[DataPart]:
    """Return the parts that ``--data`` names, CME's first.

    Raises UsageError for what is not there, for what can be read in two ways, for weights of some parts only,
    and for CME twice.
    """
    values = [data] if isinstance(data, str) else list(data)
    parts = [_part(value) for value in values]
    weights = [part.weight for part in parts]
    if None in weights and any(weight is not None for weight in weights):
        bare = values[weights.index(None)]
        raise UsageError(f"--data {bare}: give every --data a weight ({bare}=1), or none")
    if sum(part.kind == CME for part in parts) > 1:
        raise UsageError("--data names CME's rows twice; name them once")
    if not parts:
        raise UsageError("--data names nothing to train on")
    return sorted(parts, key=lambda part: part.kind != CME)


def _part(value: str) -> DataPart:
    name, equals, rest = value.partition("=")
    if name not in NAMES:
        name, rest = "", value
    elif not equals or (name == CME and _is_number(rest) and not _there(rest)):
        rest = f"={rest}" if equals else ""
    place, weight = _weight(rest)
    if weight is not None and not (math.isfinite(weight) and weight > 0):
        raise UsageError(f"--data {value}: a weight is a number above 0")
    found = _named(name, place) if name else _unnamed(place)
    return replace(found, weight=weight)


def _unnamed(place: str) -> DataPart:
    if place in ("hub", "mini"):
        return DataPart(CME, place)
    if place.startswith(HUB):
        return DataPart(ROWS, place)
    return _found(place)


def _named(name: str, place: str) -> DataPart:
    if name == CME:
        return DataPart(CME, place or "hub")
    if not place:
        hint = f" ({PUBLISHED[name].source})" if name in PUBLISHED else ""
        raise UsageError(f"--data {name}: say where its rows are, as {name}=FILE{hint}")
    if place.startswith(HUB):
        return DataPart(name, place)
    path = Path(place).expanduser()
    if path.is_dir():
        files, left_out = _row_files(path)
        if not files:
            raise UsageError(f"--data {name}={place}: the folder has no file of rows ({', '.join(SUFFIXES)})")
        return DataPart(name, place, files=files, left_out=left_out)
    if not path.is_file():
        raise UsageError(f"--data {name}={place}: no such file or folder")
    return DataPart(name, place, files=(path,))


def _weight(text: str) -> tuple[str, float | None]:
    """Return a place without its weight, and the weight. A path that exists as it stands has none.

    UsageError where the path exists with and without what looks like a weight.
    """
    rest, equals, last = text.rpartition("=")
    if not equals or not _is_number(last):
        return text, None
    if not _there(text):
        return rest, float(last)
    if _there(rest):
        raise UsageError(
            f"--data {text}: both {text} and {rest} exist; write {text}=1 for the first, or "
            f"{rest}={float(last)} for the second with a weight"
        )
    return text, None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _there(text: str) -> bool:
    return Path(text).expanduser().exists()


def _found(place: str) -> DataPart:
    """Return the part that a file or folder is, by what lies there."""
    path = Path(place).expanduser()
    if path.is_file():
        return DataPart(ROWS, place, files=(path,))
    if not path.is_dir():
        near = did_you_mean(place.partition("=")[0], ("hub", "mini", *NAMES))
        raise UsageError(
            f"--data {place}: no such folder or file{near} (or use 'hub', 'mini', or hub:OWNER/NAME)"
        )
    files, left_out = _row_files(path)
    datasets = any(path.glob("*/*.jsonl"))
    if (files or left_out) and datasets:
        raise UsageError(
            f"--data {place}: holds files of rows and folders of datasets; say {CME}={place} or "
            f"{ROWS}={place}"
        )
    if left_out and not files:
        raise UsageError(
            f"--data {place}: holds {left_out[0].name}, but no rows to train on; name the file itself if it "
            "is meant"
        )
    return DataPart(ROWS, place, files=files, left_out=left_out) if files else DataPart(CME, place)


def _row_files(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the files of rows right in a folder, and those that are named as another split."""
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != LOCK_NAME and not file.name.startswith(".") and _is_rows(file)
    ]
    scored = [file for file in files if "train" not in _words(file) and not _SCORED.isdisjoint(_words(file))]
    return tuple(file for file in files if file not in scored), tuple(scored)


def _is_rows(file: Path) -> bool:
    return form_of(file) in SUFFIXES


def _words(file: Path) -> set[str]:
    name = file.name.partition(".")[0].lower()
    return set(name.replace("-", "_").split("_"))
