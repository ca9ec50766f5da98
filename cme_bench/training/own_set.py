"""A set of one's own rows in a mixture: which are trained on, which are held out, and which cannot be.

Rows without a prompt or an answer, and rows whose answer does not fit ``--max-length``, are left out. They
are counted, and the first of them named. Rows that stand there twice stay, and are counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from cme_bench.authoring.new_options import FileOptions
from cme_bench.authoring.table_files import Table, read_table, table_of
from cme_bench.training.options import TrainOptions
from cme_bench.training.own_rows import FIELDS, Conversation, Form, TextRow, form_of, read_rows, used_columns
from cme_bench.training.parts import HUB, ROWS, DataPart
from cme_bench.training.pictured import COLUMNS, Pictured, with_pictures
from cme_bench.training.published import PUBLISHED, differences
from cme_bench.util.errors import UsageError

NAMED = 3
"""So many of the rows that are left out are named."""
Indices = NDArray[np.int64]
OwnRow: TypeAlias = TextRow | Pictured


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that are not trained on, by place; ``reason`` goes on with "rows"."""

    reason: str
    places: tuple[str, ...]
    count: int

    def text(self, origin: str) -> str:
        """Say it in one line."""
        more = ", ..." if self.count > len(self.places) else ""
        rows = "1 row" if self.count == 1 else f"{self.count:,} rows"
        return f"note: {origin}: {rows} {self.reason}: {', '.join(self.places)}{more}"


@dataclass(frozen=True, slots=True)
class OwnSet:
    """Rows of one part of ``--data``. ``name``: in the record and for the draws, whatever the file is called;
    ``kept``, ``held``: indices into ``rows`` that are trained on, and that are held out; ``left_out``: by
    what is wrong with them."""

    name: str
    part: DataPart
    form: Form
    rows: Sequence[OwnRow]
    origin: str
    place: Callable[[int], str]
    fingerprint: str
    revision: str | None
    columns: tuple[str, ...]
    kept: Indices
    held: Indices
    repeated: int
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def domain(self) -> str:
        return "own"

    @property
    def note(self) -> str:
        return self.part.kind if self.part.kind in PUBLISHED else ""

    @property
    def pictured(self) -> bool:
        """Whether some of its rows have images."""
        return any(isinstance(row, Pictured) for row in self.rows)

    @property
    def paraphrases(self) -> int:
        """The number of ways in which its items are asked."""
        return 1

    @property
    def weight(self) -> float | None:
        return self.part.weight

    def __len__(self) -> int:
        return len(self.kept)

    def held_out(self) -> OwnSet:
        """Return the rows that are never trained on, as a set of their own; it may be empty."""
        return replace(self, kept=self.held, held=np.zeros(0, dtype=np.int64))

    def prompted(self, index: int, turn: int) -> OwnRow:
        """Return row ``index`` of those that are kept; there is one way to ask it."""
        return self.rows[int(self.kept[index])]

    def place_of(self, index: int) -> str:
        """Return the file and line of row ``index`` of those that are kept."""
        return self.place(int(self.kept[index]))

    def fitted(self, fits: Callable[[Sequence[OwnRow]], Sequence[bool]], limit: int) -> OwnSet:
        """Return the set without the rows whose answer does not fit into ``limit`` tokens.

        UsageError if none is left.
        """
        chosen = np.concatenate([self.kept, self.held])
        verdicts = np.array(fits([self.rows[int(i)] for i in chosen]), dtype=bool)
        odd = sorted(int(i) for i in chosen[~verdicts])
        if not odd:
            return self
        reason = f"left out, with an answer that does not fit --max-length {limit}"
        left_out = (*self.left_out, self._left_out(reason, odd))
        kept, held = verdicts[: len(self.kept)], verdicts[len(self.kept) :]
        fitted = replace(self, kept=self.kept[kept], held=self.held[held], left_out=left_out)
        fitted.check()
        return fitted

    def _left_out(self, reason: str, rows: Sequence[int]) -> LeftOut:
        return LeftOut(reason, tuple(self.place(i) for i in rows[:NAMED]), len(rows))

    def check(self) -> None:
        """Raise UsageError if no row is left, with the reasons."""
        if not len(self):
            why = "; ".join(each.text(self.origin).removeprefix("note: ") for each in self.left_out)
            raise UsageError(
                why + "; no row is left to train on" if why else f"{self.origin}: no row is left"
            )

    def describe(self) -> list[dict[str, Any]]:
        """Return the set as ``cme_training.json`` records it, as one part."""
        part = {
            "task": self.form,
            "origin": self.origin,
            "split": "rows",
            "revision": self.revision,
            "sha256": self.fingerprint,
            "rows": len(self.rows),
            "columns": list(self.columns),
            "kept": len(self.kept),
            "held_out": len(self.held),
            "left_out": {each.reason: each.count for each in self.left_out},
            "repeated": self.repeated,
        }
        return [part]


def load_own(part: DataPart, options: TrainOptions, *, name: str) -> OwnSet:
    """Read the rows of one part.

    Raises UsageError as :func:`read_rows` does, and where no row has a prompt and an answer.
    """
    tables, revision = _tables(part, options)
    asked = "instruction" if part.kind in PUBLISHED else options.row_form
    form = form_of(tables[0].columns, asked, tables[0].origin)
    for table in tables[1:]:
        if (other := form_of(table.columns, asked, table.origin)) != form:
            raise UsageError(
                f"{table.origin}: its rows have the form {other}, those of {tables[0].origin} {form}"
            )
    rows = [row for table in tables for row in _rows(table, form)]
    place = _places(tables)
    empty, promptless, good = _sorted_by_fault(rows)
    first: dict[OwnRow, int] = {}
    for index in good:
        first.setdefault(_bare(rows[index]), index)
    kept, held = _hold_out(rows, list(islice(good, options.cap)), options.holdout)
    made = OwnSet(
        name=name,
        part=part,
        form=form,
        rows=rows,
        origin=part.place,
        place=place,
        fingerprint=_fingerprint(form, rows),
        revision=revision,
        columns=tuple(used_columns(form, tables[0].columns)),
        kept=kept,
        held=held,
        repeated=len(good) - len(first),
    )
    faults = ("left out, with an empty answer", empty), ("left out, without a prompt", promptless)
    if made.pictured:
        shown = (name for name in COLUMNS if name in (*tables[0].columns, *tables[0].raw))
        made = replace(made, columns=(*made.columns, *shown))
    made = replace(
        made,
        left_out=tuple(made._left_out(reason, found) for reason, found in faults if found),
        notes=tuple(_notes(part, tables, made)),
    )
    made.check()
    return made


def _rows(table: Table, form: Form) -> list[OwnRow]:
    """Return the rows with their images, which Parquet and the hub have as contents."""
    values: Sequence[Mapping[str, Any]] = table.rows
    for name in COLUMNS:
        if name in table.raw:
            values = [{**row, name: found} for row, found in zip(values, table.raw[name], strict=True)]
    return with_pictures(read_rows(table, form), values, table.origin, table.place)


def _tables(part: DataPart, options: TrainOptions) -> tuple[list[Table], str | None]:
    """Return the rows of every file, or of the split on the hub with its commit."""
    if part.place.startswith(HUB):
        from cme_bench.tasks.hub import hub_rows

        rows, commit = hub_rows(part.place.removeprefix(HUB), offline=options.offline)
        return [table_of(rows)], commit
    told = FileOptions(options.encoding, options.delimiter, options.quotes)
    tables = [read_table(file, told) for file in part.files]
    if wrong := [line for table in tables for name, line in table.unread.items() if name in FIELDS]:
        raise UsageError(f"{wrong[0]}, not a text")
    return tables, None


def _places(tables: Sequence[Table]) -> Callable[[int], str]:
    def place(index: int) -> str:
        for table in tables:
            if index < len(table.rows):
                return table.place(index)
            index -= len(table.rows)
        raise IndexError(index)

    return place


def _sorted_by_fault(rows: Sequence[OwnRow]) -> tuple[list[int], list[int], list[int]]:
    """Return the rows with an empty answer, those without a prompt, and the good ones."""
    found: tuple[list[int], list[int], list[int]] = ([], [], [])
    for index, row in enumerate(rows):
        found[0 if not row.target.strip() else 1 if not row.asked.strip() else 2].append(index)
    return found


def _bare(row: OwnRow) -> OwnRow:
    if isinstance(row, Pictured):
        return row.bare
    return replace(row, place="") if isinstance(row, Conversation) else row


def _hold_out(rows: Sequence[OwnRow], good: Sequence[int], count: int) -> tuple[Indices, Indices]:
    """Return the rows that are trained on, and the ``count`` that are not: those of lowest hash, whatever the
    seed. No other copy of a held-out row is trained on."""
    chosen: dict[OwnRow, int] = {}
    if count:
        first: dict[OwnRow, int] = {}
        for index in good:
            first.setdefault(_bare(rows[index]), index)
        by_hash = sorted(first, key=lambda row: hashlib.sha256(_content(row)).digest())
        chosen = {row: first[row] for row in by_hash[:count]}
    kept = [index for index in good if not chosen or _bare(rows[index]) not in chosen]
    return np.array(kept, dtype=np.int64), np.array(sorted(chosen.values()), dtype=np.int64)


def _content(row: OwnRow) -> bytes:
    if isinstance(row, Pictured):
        return orjson.dumps(row.bare.row) + row.digest()
    return orjson.dumps(_bare(row))


def _fingerprint(form: Form, rows: Sequence[OwnRow]) -> str:
    """Return the sha256 of what is trained on, in its order: a file of another kind with the same rows has
    the same."""
    digest = hashlib.sha256(form.encode())
    for row in rows:
        digest.update(_content(row))
    return digest.hexdigest()


def _notes(part: DataPart, tables: Sequence[Table], made: OwnSet) -> list[str]:
    """Return what a user must know of the rows."""
    notes = [f"{made.origin}: {len(made.rows):,} rows of the form {made.form} ({', '.join(made.columns)})"]
    unused = [name for name in tables[0].columns if name not in made.columns]
    if unused:
        notes[0] += f"; not trained on: {', '.join(unused)}"
    if part.left_out:
        notes.append(f"note: {part.place}: not read: {', '.join(file.name for file in part.left_out)}")
    if part.kind != ROWS:
        found = differences(part.kind, part.files, len(made.rows), tables[0].columns)
        notes.append(f"{part.kind}: the published file" if found is None else f"note: {part.kind}: {found}")
    if made.repeated:
        rows = "1 row repeats" if made.repeated == 1 else f"{made.repeated:,} rows repeat"
        notes.append(f"note: {made.origin}: {rows} an earlier one; all stay in")
    return notes
