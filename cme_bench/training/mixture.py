"""The training mixture: rows of every dataset that may be trained on, and which of them are drawn when.

No evaluated row is ever trained on: a part never names the split that its task scores, and rows whose item
also occurs in that split (of the same source) are dropped and counted. Draws depend on the seed, the epoch
and the dataset alone.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cme_bench.tasks.fetch import located
from cme_bench.tasks.row_files import Rows
from cme_bench.tasks.sources import DataSource, FolderSource
from cme_bench.tasks.spec import TaskSpec
from cme_bench.training.options import Weighting, check_temperature
from cme_bench.training.templates import DatasetTemplate, Prompted, Row, SplitFile, TemplatePart
from cme_bench.util.errors import UsageError
from cme_bench.util.options import check_choice

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, slots=True)
class LoadedPart:
    """Rows of one part. ``place``: of a row, for messages.

    ``kept``: indices into ``table`` that are trained on. ``held``: indices kept for
    validation. Of the others, ``filtered`` do not fit the dataset's condition, and ``repeated`` occurred
    before. ``evaluated`` occur in an evaluated split; None: the source has no such split to check."""

    task: TaskSpec
    origin: str
    split: str
    revision: str | None
    fingerprint: str
    table: datasets.Dataset
    place: Callable[[int], str]
    columns: Mapping[str, str]
    kept: NDArray[np.int64]
    held: NDArray[np.int64]
    filtered: int
    repeated: int
    evaluated: int | None

    def describe(self) -> dict[str, Any]:
        """Return the part as ``cme_training.json`` records it."""
        return {
            "task": self.task.name,
            "origin": self.origin,
            "split": self.split,
            "revision": self.revision,
            "sha256": self.fingerprint,
            "rows": len(self.table),
            "kept": len(self.kept),
            "held_out": len(self.held),
            "filtered": self.filtered,
            "repeated": self.repeated,
            "in_evaluated_split": self.evaluated,
        }


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """All rows of one dataset, as one sequence of ``len(self)`` items."""

    template: DatasetTemplate
    parts: tuple[LoadedPart, ...]

    @property
    def name(self) -> str:
        return self.template.dataset

    @property
    def domain(self) -> str:
        return self.template.domain

    @property
    def note(self) -> str:
        return self.template.note

    @property
    def paraphrases(self) -> int:
        """The number of ways in which its items are asked."""
        return len(self.template.paraphrases)

    def __len__(self) -> int:
        return sum(len(part.kept) for part in self.parts)

    def describe(self) -> list[dict[str, Any]]:
        """Return its parts as ``cme_training.json`` records them."""
        return [part.describe() for part in self.parts]

    def held_out(self) -> TrainingSet:
        """Return the items that are never trained on, as a set of their own; it may be empty."""
        nobody = np.zeros(0, dtype=np.int64)
        return replace(self, parts=tuple(replace(p, kept=p.held, held=nobody) for p in self.parts))

    def prompted(self, index: int, turn: int, row: Mapping[str, Any] | None = None) -> Prompted:
        """Return item ``index`` asked in the ``turn``-th of the ways that fit it, counted round.

        ``row``: the item's row, where :meth:`rows` has read it. Raises UsageError with the row's place if a
        template does not fit it.
        """
        part, number = self._found(index)
        try:
            wide = self.template.widened(part.table[number] if row is None else row, part.columns)
            ways = self.template.eligible(wide)
            return self.template.prompted(wide, ways[turn % len(ways)], part.task)
        except (ValueError, ZeroDivisionError) as err:
            raise UsageError(f"{part.place(number)}: {self.template.path.name}: {err}") from err

    def rows(self, indices: Iterable[int]) -> dict[int, Mapping[str, Any]]:
        """Return the rows of items, several times faster than one by one."""
        numbers: dict[int, dict[int, int]] = {}
        for index in indices:
            part, number = self._found(index)
            numbers.setdefault(id(part), {})[index] = number
        read: dict[int, Mapping[str, Any]] = {}
        for part in self.parts:
            if wanted := numbers.get(id(part)):
                columns = part.table[list(wanted.values())]
                values = zip(*columns.values(), strict=True)
                read |= zip(wanted, (dict(zip(columns, row, strict=True)) for row in values), strict=True)
        return read

    def place_of(self, index: int) -> str:
        """Return the file and line of item ``index``."""
        part, row = self._found(index)
        return part.place(row)

    def _found(self, index: int) -> tuple[LoadedPart, int]:
        """Return the part that item ``index`` is in, and its row there."""
        for part in self.parts:
            if index < len(part.kept):
                return part, int(part.kept[index])
            index -= len(part.kept)
        raise IndexError(index)


@dataclass(frozen=True, slots=True)
class Draw:
    """One training example: item ``index`` of dataset ``dataset``, asked in its ``turn``-th way."""

    dataset: int
    index: int
    turn: int


def load_training_set(
    template: DatasetTemplate,
    source: DataSource,
    *,
    cap: int | None = None,
    holdout: int = 0,
    spared: Sequence[Rows] = (),
) -> TrainingSet:
    """Load the rows of one dataset from ``source``, at most ``cap`` of them (the first).

    ``holdout`` of them, those whose items hash lowest, are held out whatever the seed. ``spared``: rows that
    are left out as those that the dataset's own tasks score. Raises UsageError if the source has no rows to
    train on, or none are left.
    """
    parts: list[LoadedPart] = []
    keys: list[list[bytes]] = []
    seen: set[bytes] = set()
    banned = _evaluated_keys(template, source, spared)
    for part in template.parts:
        place = find_part(part, source)
        if place is None:
            if not part.optional:
                raise UsageError(_missing(template, part, source))
            continue
        room = None if cap is None else cap - sum(len(p.kept) for p in parts)
        loaded, own = _load_part(template, part, place, source, seen=seen, banned=banned, room=room)
        parts.append(loaded)
        keys.append(own)
    whole = TrainingSet(template, _hold_out(parts, keys, holdout))
    if not len(whole):
        raise UsageError(f"{template.dataset}: no row is left to train on ({template.path.name})")
    return whole


def _hold_out(
    parts: Sequence[LoadedPart], keys: Sequence[Sequence[bytes]], count: int
) -> tuple[LoadedPart, ...]:
    """Return the parts with the ``count`` items of lowest key moved from ``kept`` to ``held``.

    ``keys``: of the items that each part keeps.
    """
    if not count:
        return tuple(parts)
    by_hash = sorted(
        (key, number, int(row))
        for number, (part, own) in enumerate(zip(parts, keys, strict=True))
        for row, key in zip(part.kept, own, strict=True)
    )
    held: list[set[int]] = [set() for _ in parts]
    for _, number, row in by_hash[:count]:
        held[number].add(row)
    return tuple(
        replace(
            part,
            kept=np.array([row for row in part.kept if int(row) not in own], dtype=np.int64),
            held=np.array(sorted(own), dtype=np.int64),
        )
        for part, own in zip(parts, held, strict=True)
    )


_HUB = SplitFile(None, "", {})


def find_part(part: TemplatePart, source: DataSource) -> SplitFile | None:
    """Return where the part's rows lie in this source; None if it has none."""
    if not isinstance(source, FolderSource):
        return None if part.hub is None else replace(_HUB, stem=part.hub)
    for file in part.files:
        if (source.folder / (file.folder or part.task.folder) / f"{file.stem}.jsonl").is_file():
            return file
    return None


def _missing(template: DatasetTemplate, part: TemplatePart, source: DataSource) -> str:
    if not isinstance(source, FolderSource):
        return f"{template.dataset}: no training split is known on the hub"
    names = [f"{f.folder or part.task.folder}/{f.stem}.jsonl" for f in part.files]
    return (
        f"{source.folder}: none of {', '.join(names)} (training rows of {template.dataset}); leave it out "
        "with --datasets, or give another --data"
    )


def _load_part(
    template: DatasetTemplate,
    part: TemplatePart,
    place: SplitFile,
    source: DataSource,
    *,
    seen: set[bytes],
    banned: set[bytes] | None,
    room: int | None,
) -> tuple[LoadedPart, list[bytes]]:
    """Read and sift the rows of one part, at most ``room``; add their keys to ``seen``.

    Return the part, and the keys of the items that it keeps.
    """
    rows = source.rows(located(part.task, place.folder), place.stem)
    kept: list[int] = []
    keys: list[bytes] = []
    filtered = repeated = evaluated = 0
    sifted = template.sifter(place.columns)
    for index, row in enumerate(rows.each()):
        if room is not None and len(kept) >= room:
            break
        try:
            counts, item = sifted(row)
        except ValueError as err:
            raise UsageError(f"{rows.place(index)}: {template.path.name}: {err}") from err
        if not counts:
            filtered += 1
            continue
        key = _digest(item)
        if key in seen:
            repeated += 1
        elif banned is not None and key in banned:
            evaluated += 1
        else:
            kept.append(index)
            keys.append(key)
        seen.add(key)
    found = LoadedPart(
        task=part.task,
        origin=rows.origin,
        split=place.stem,
        revision=source.revision(part.task),
        fingerprint=rows.fingerprint(),
        table=rows.table,
        place=rows.place,
        columns=place.columns,
        kept=np.array(kept, dtype=np.int64),
        held=np.zeros(0, dtype=np.int64),
        filtered=filtered,
        repeated=repeated,
        evaluated=None if banned is None else evaluated,
    )
    return found, keys


def _evaluated_keys(
    template: DatasetTemplate, source: DataSource, spared: Sequence[Rows]
) -> set[bytes] | None:
    """Return the keys of the rows that the dataset's tasks score in this source, and of those that are
    spared; None if there are none."""
    tables = [
        evaluated_rows(task, source)
        for task in {part.task.name: part.task for part in template.parts}.values()
    ]
    found = [rows for rows in tables if rows is not None]
    keys, sifted = set(), template.sifter()
    for rows in spared:
        keys |= _foreign_keys(sifted, rows)
    for rows in found:
        for index, row in enumerate(rows.each()):
            try:
                keys.add(_digest(sifted(row)[1]))
            except ValueError as err:
                raise UsageError(f"{rows.place(index)}: {template.path.name}: {err}") from err
    return keys if found or keys else None


def _foreign_keys(sifted: Callable[[Row], tuple[bool, str]], rows: Rows) -> set[bytes]:
    """Return the keys that rows of any dataset have as items of this one; a row that does not fit is none."""
    keys = set()
    for row in rows.each():
        try:
            keys.add(_digest(sifted(row)[1]))
        except ValueError:
            if not keys:  # the first row has other columns, and so have the rest
                break
    return keys


def evaluated_rows(task: TaskSpec, source: DataSource) -> Rows | None:
    """Return the rows that ``task`` scores, if ``source`` has them: a folder for training alone may not."""
    split = task.eval_split
    if isinstance(source, FolderSource) and not source.file(task, split).is_file():
        return None
    return source.rows(task, split)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def mixture_weights(sizes: Sequence[int], weighting: str, temperature: float = 2.0) -> list[float]:
    """Return the share of each dataset, summing to 1: proportional to its size n, equal, or to n^(1/T).

    T = 1 is proportional, T to infinity equal. Raises UsageError for an unknown weighting or T <= 0.
    """
    check_choice(weighting, Weighting, "weighting")
    check_temperature(temperature)
    power = {"proportional": 1.0, "equal": 0.0, "temperature": 1.0 / temperature}[weighting]
    raw = [size**power for size in sizes]
    return [value / sum(raw) for value in raw]


def allot(total: int, weights: Sequence[float]) -> list[int]:
    """Split ``total`` by ``weights`` into whole numbers that sum to it (largest remainders)."""
    exact = [total * weight for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def draw_epoch(
    names: Sequence[str],
    sizes: Sequence[int],
    counts: Sequence[int],
    *,
    seed: int,
    epoch: int,
    most: int | None = None,
) -> list[Draw]:
    """Return ``counts[d]`` draws of each dataset, shuffled; the first ``most`` of them.

    A dataset's items come in random order, each once before any comes again; an item that comes again, in
    this epoch or the next, is asked in its next way.
    """
    none = np.zeros(0, dtype=np.int64)
    datasets, items, turns = [none], [none], [none]
    for dataset, (name, size, count) in enumerate(zip(names, sizes, counts, strict=True)):
        first_way = _generator(seed, name, -1).integers(0, 1 << 16, size)
        random = _generator(seed, name, epoch)
        rounds = -(-count // size)
        order = np.concatenate([none, *(random.permutation(size) for _ in range(rounds))])[:count]
        datasets.append(np.full(count, dataset))
        items.append(order)
        turns.append(first_way[order] + epoch * rounds + np.arange(count) // size)
    columns = [np.concatenate(each) for each in (datasets, items, turns)]
    shuffled = _generator(seed, "mixture", epoch).permutation(sum(counts))[:most]
    return [Draw(*each) for each in zip(*(column[shuffled].tolist() for column in columns), strict=True)]


def _generator(seed: int, name: str, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), epoch + 1])
