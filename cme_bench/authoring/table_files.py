"""Read a file of rows in any common form: JSON lines, a JSON array, CSV of any dialect, Parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cme_bench.authoring.csv_files import read_csv_text
from cme_bench.authoring.new_options import FileOptions
from cme_bench.authoring.text_files import decoded, other_form
from cme_bench.tasks.packed import PACKINGS, form_of, unpacked
from cme_bench.tasks.row_files import Rows
from cme_bench.tasks.values import NotJsonError, is_blank, plain
from cme_bench.util.errors import UsageError, first_line


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as JSON values, every row with the same columns.

    ``lines[i]``: the line of row i in ``origin``, where it has lines; ``typed``: whether numbers and lists
    come as such (JSON, Parquet) or every value is a text (CSV); ``notes``: how the file was read, where a
    reader may want to know; ``label_names``: names of a column's integers, where the data set has them.
    ``unread``: by the name of a column that no JSON holds, the first place and what stands there; ``raw``:
    the values of such a column.
    """

    rows: Sequence[Mapping[str, Any]]
    origin: str
    lines: Sequence[int] | None = None
    typed: bool = True
    notes: tuple[str, ...] = ()
    label_names: Mapping[str, Sequence[str]] | None = None
    unread: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return list(self.rows[0])

    def place(self, index: int) -> str:
        """Return ``file:line``, or ``file row N``, of row ``index``."""
        return f"{self.origin}:{self.lines[index]}" if self.lines else f"{self.origin} row {index}"

    def values(self, column: str) -> list[Any]:
        return [row[column] for row in self.rows]


def read_table(file: Path, options: FileOptions | None = None) -> Table:
    """Return the rows of ``file``, read by its suffix (that of a packing, as ``.gz``, may follow).

    Raises UsageError, with file and line where there is one, for what is no such file, for rows that are no
    mappings, and for an encoding or a dialect that must be told.
    """
    options = options or FileOptions()
    suffix, content = unpacked(file)
    reader = _READERS.get(suffix)
    if reader is None:
        sheet = "save the sheet as CSV (UTF-8); " if suffix in (".xlsx", ".xls", ".ods") else ""
        packed = ", ".join(PACKINGS)
        raise UsageError(f"{file}: {sheet}rows are read from {', '.join(_READERS)} ({packed} may follow)")
    if (form := other_form(content)) and not (suffix == ".parquet" and content.startswith(b"PAR1")):
        raise UsageError(f"{file}: holds {form}")
    table = _whole(reader(file, content, options))
    if not table.rows:
        raise UsageError(f"{file}: holds no rows")
    return table


def table_of(rows: Rows) -> Table:
    """Return rows that ``datasets`` loaded, with the names of their labels."""
    features = rows.table.features
    names = {key: list(f.names) for key, f in features.items() if hasattr(f, "names")}
    return _whole(Table([dict(row) for row in rows.table], rows.origin, rows.lines, label_names=names))


def _read_csv(file: Path, content: bytes, options: FileOptions) -> Table:
    text = decoded(file, content, options)
    tabs = "\t" in text and form_of(file) == ".tsv"
    separator = options.delimiter or ("\t" if tabs else None)
    read = read_csv_text(text, str(file), separator=separator, quotes=options.quotes)
    notes = [read.note] if read.note else []
    names: list[str | None] = []
    for place, name in enumerate(read.header):
        column = [row[place] for row in read.rows]
        if not name and (not any(map(str.strip, column)) or _counts(column)):
            notes.append(f"column {place + 1} has no name and only counts rows or is empty: left out")
            names.append(None)
        else:
            names.append(name or f"column_{place + 1}")
    kept = [name for name in names if name is not None]
    if len(set(kept)) < len(kept):
        twice = next(name for name in kept if kept.count(name) > 1)
        raise UsageError(f"{file}:1: two columns are called {twice!r}")
    rows = [
        {name: value for name, value in zip(names, row, strict=True) if name is not None} for row in read.rows
    ]
    return Table(rows, str(file), read.lines, typed=False, notes=tuple(notes))


def _counts(column: Sequence[str]) -> bool:
    """Return whether the column is the index that pandas writes."""
    return any(list(column) == [str(i) for i in range(start, start + len(column))] for start in (0, 1))


def _read_json(file: Path, content: bytes, options: FileOptions) -> Table:
    """Read a JSON array of objects, an object around one, or JSON lines."""
    text = decoded(file, content, options)
    try:
        whole = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return _json_lines(file, text)
    notes: tuple[str, ...] = ()
    if isinstance(whole, dict):
        lists = [key for key, value in whole.items() if _is_rows(value) and form_of(file) == ".json"]
        if len(lists) == 1:
            rows = whole[lists[0]]
            notes = (f"rows are those of {lists[0]!r}",)
        else:
            # one object may also be the one line of a file of JSON lines
            _refuse_tables(file, whole, lists)
            rows = [whole]
    elif _is_rows(whole):
        rows = whole
    elif whole == []:
        raise UsageError(f"{file}: holds no rows")
    else:
        raise UsageError(f"{file}: holds neither a list of JSON objects nor one a line")
    lines = [1] if isinstance(whole, dict) and not notes else None
    return Table(rows, str(file), lines, notes=notes)


def _refuse_tables(file: Path, whole: Mapping[str, Any], lists: Sequence[str]) -> None:
    """Refuse an object that holds several tables, or one table by its columns, as pandas writes it."""
    if len(lists) > 1:
        raise UsageError(
            f"{file}: holds several lists of rows, {', '.join(lists)}; keep the one to be scored"
        )
    values = list(whole.values())
    by_column = len(values) > 1 and all(isinstance(value, list) for value in values)
    by_index = len(values) > 1 and all(isinstance(value, dict) and value for value in values)
    same = by_index and len({tuple(value) for value in values}) == 1
    if same or (by_column and form_of(file) == ".json"):
        raise UsageError(
            f"{file}: holds one object of columns; write one object a row "
            "(pandas: to_json(FILE, orient='records', lines=True))"
        )


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _json_lines(file: Path, text: str) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n\ufeff", "\n")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file}:{number}: not a JSON object ({first_line(error)})") from error
        if not isinstance(row, dict):
            raise UsageError(f"{file}:{number}: not a JSON object but a {type(row).__name__}")
        rows.append(row)
        lines.append(number)
    return Table(rows, str(file), lines)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return one JSON object; ValueError if it has a key twice, since one value would be lost."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return made


def _read_parquet(file: Path, content: bytes, options: FileOptions) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{file}: not a Parquet file ({first_line(error)})") from error
    texts = _texts_of_bytes(rows)
    notes = (f"read as UTF-8 texts: {', '.join(texts)}",) if texts else ()
    rows = [row | {name: values[i] for name, values in texts.items()} for i, row in enumerate(rows)]
    return Table(rows, str(file), notes=notes, label_names=_names_of_labels(table.schema.metadata or {}))


def _texts_of_bytes(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """Return the columns of bytes that are texts, as some writers store them; images and other contents are
    none."""
    found: dict[str, list[str | None]] = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        if not any(isinstance(value, bytes) for value in values):
            continue
        try:
            texts = [value.decode() if isinstance(value, bytes) else None for value in values]
        except UnicodeDecodeError:
            continue
        if not any(_CONTROL.search(text) for text in texts if text):
            found[name] = texts
    return found


_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")


def _names_of_labels(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names that ``datasets`` wrote for the integers of columns."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = {key: feature.get("names") for key, feature in features.items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {key: value for key, value in names.items() if isinstance(value, list)}


_READERS: dict[str, Callable[[Path, bytes, FileOptions], Table]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}

SUFFIXES = tuple(_READERS)
"""Suffixes of the files that :func:`read_table` reads; one of :data:`PACKINGS` may follow."""


_ENCODED_TWICE = re.compile(
    "\u00c3[\u0080-\u00bf\u2013]|\u00e2\u20ac[\u2122\u0153\u009d\u201c\u201d\u2018\u2019\u00a6]"
)


_BYTES = re.compile(r"b(['\"]).*\1", re.DOTALL)
"""Bytes as Python prints them."""


def _encoded_twice(value: Any) -> bool:
    return isinstance(value, str) and _ENCODED_TWICE.search(value) is not None


def _whole(table: Table) -> Table:
    """Return the same table with one set of columns, and JSON values only."""
    notes = list(table.notes)
    columns = list(dict.fromkeys(key for row in table.rows for key in row))
    optional = [name for name in columns if any(name not in row for row in table.rows)]
    if optional:
        notes.append(f"not in every row, and empty there: {', '.join(optional)}")
    if twice := next((text for row in table.rows for text in row.values() if _encoded_twice(text)), ""):
        notes.append(f"warning: texts look encoded twice, as UTF-8 read as Windows-1252: {twice[:60]!r}")
    rows: list[dict[str, Any]] = [{} for _ in table.rows]
    unread: dict[str, str] = {}
    raw: dict[str, list[Any]] = {}
    for name in columns:
        index = 0
        try:
            for row, source in zip(rows, table.rows, strict=True):
                row[name] = plain(source.get(name))
                index += 1
        except NotJsonError as error:
            notes.append(f"column {name} holds {error}: left out")
            unread[name] = f"{table.place(index)}: {name} holds {error}"
            raw[name] = [source.get(name) for source in table.rows]
            for row in rows:
                row.pop(name, None)
    if rows and not rows[0] and not raw:
        raise UsageError(f"{table.origin}: has no columns of texts or numbers")
    for name in rows[0] if rows else ():
        texts = [row[name] for row in rows if not is_blank(row[name])]
        if len(texts) > 1 and all(isinstance(text, str) and _BYTES.fullmatch(text) for text in texts):
            raise UsageError(
                f"{table.origin}: {name} holds bytes as Python prints them ({texts[0]}): decode them"
            )
    if dead := [name for name in rows[0] if all(is_blank(row[name]) for row in rows)] if rows else []:
        notes.append(f"empty in every row: {', '.join(dead)}")
    return Table(rows, table.origin, table.lines, table.typed, tuple(notes), table.label_names, unread, raw)
