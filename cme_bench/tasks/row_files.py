"""Files of rows: JSON lines, CSV and Parquet, read whole, with the place of every row for messages."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from cme_bench.images.cells import holds_contents
from cme_bench.images.decode import decode_image, is_pillow
from cme_bench.tasks.packed import PACKINGS, form_of, unpacked
from cme_bench.tasks.plain_table import PlainTable, is_plain, real_table
from cme_bench.tasks.values import plain
from cme_bench.util.errors import UsageError, did_you_mean, first_line

if TYPE_CHECKING:
    import datasets
    import pyarrow

SUFFIXES = {".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
"""File suffix -> the builder of ``datasets`` that reads such a file, which is what a task file names."""
CSV_SETTINGS = frozenset(
    """sep delimiter header names column_names usecols skipinitialspace skiprows nrows na_values
    keep_default_na na_filter skip_blank_lines true_values false_values thousands decimal quotechar
    quoting escapechar doublequote comment encoding encoding_errors""".split()
)
"""Settings of csv files in a task file: those of ``datasets``, whose meaning is pandas'."""
_UNCOUNTED = frozenset({"skiprows", "nrows", "skip_blank_lines", "quoting", "comment"})
"""Settings under which the line of a row is not known."""
_BATCH = 512
"""Rows that leave a table together."""
MOST_BYTES = 1 << 26
"""The largest file whose rows stay as they were read: Arrow's tables take a fifth of the memory."""
_PARSING = ("quotechar", "escapechar", "doublequote", "skipinitialspace")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one split. ``lines[i]`` is the line of row i in ``origin`` where that is a file of lines;
    ``folder``: where the paths of images in them begin, None where they may name no file; ``root``: the
    folder that these may not leave, if it is another."""

    table: datasets.Dataset | PlainTable
    origin: str
    lines: Sequence[int] | None = None
    folder: Path | None = None
    root: Path | None = None

    def place(self, index: int) -> str:
        """Return ``file:line`` or ``dataset row N`` of row ``index``."""
        return f"{self.origin}:{self.lines[index]}" if self.lines else f"{self.origin} row {index}"

    def each(self) -> Iterator[dict[str, Any]]:
        """Yield every row, as ``self.table[i]`` has it, several times faster than one by one."""
        if isinstance(self.table, PlainTable):
            yield from self.table
            return
        for batch in self.table.iter(batch_size=_BATCH):
            columns = dict(batch)
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))

    def fingerprint(self, without: Collection[str] = ()) -> str:
        """Return the sha256 of the rows' contents; the same rows give the same value from a folder or from
        the hub. ``without``: columns that are hashed otherwise."""
        digest = hashlib.sha256()
        for row in self.each():
            kept = {key: value for key, value in row.items() if key not in without} if without else row
            digest.update(orjson.dumps(kept, option=orjson.OPT_SORT_KEYS, default=_hashed))
        return digest.hexdigest()


def _hashed(value: Any) -> str:
    """Return the text of a value that JSON cannot hold; of an image its pixels, since it prints an
    address."""
    return decode_image(value, folder=None).digest if is_pillow(value) else str(value)


@dataclass(frozen=True, slots=True)
class JoinedRows(Rows):
    """Rows of several files."""

    parts: tuple[Rows, ...] = ()

    def place(self, index: int) -> str:
        """Return the place of row ``index`` in its own file."""
        for part in self.parts:
            if index < len(part.table):
                return part.place(index)
            index -= len(part.table)
        raise IndexError(index)


def inside(file: Path, root: Path) -> Path:
    """Return ``file`` if it lies below ``root`` with every link followed; UsageError if not."""
    if not file.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{file}: leads out of {root}, so it is not read")
    return file


def _opened(file: Path) -> BinaryIO:
    """Return the bytes of a file to read, of a packed one (by its name) those within."""
    return io.BytesIO(unpacked(file)[1]) if file.suffix.lower() in PACKINGS else file.open("rb")


def read_jsonl(file: Path) -> Rows:
    """Read all rows of a file of JSON lines, or of one JSON array; blank lines are skipped.

    A key that a row lacks is None there, as for ``datasets``.

    UsageError with file and line for anything else.
    """
    if (array := _read_array(file)) is not None:
        return array
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    with _opened(file) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = _json_value(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{file}:{number}: not a JSON object ({first_line(error)})") from error
            if not isinstance(row, dict):
                raise UsageError(f"{file}:{number}: not a JSON object but a {type(row).__name__}")
            rows.append(row)
            lines.append(number)
    if not rows:
        raise UsageError(f"{file}: holds no rows")
    keys = tuple(dict.fromkeys(chain.from_iterable(rows)))
    if not keys:
        raise UsageError(f"{file}:{lines[0]}: the object is empty")
    if any(tuple(row) != keys for row in rows):
        rows = [{key: row.get(key) for key in keys} for row in rows]
    if file.stat().st_size <= MOST_BYTES and is_plain(rows):
        return Rows(PlainTable(rows, _table), str(file), lines, file.parent)
    import pyarrow

    try:
        table = _table(rows)
    except (ValueError, pyarrow.ArrowTypeError, OverflowError) as error:
        raise UsageError(_first_misfit(file, rows, lines, first_line(error))) from error
    return Rows(table, str(file), lines, file.parent)


_BEYOND_64_BITS = re.compile(rb"(?<![\d.])\d{19,}(?![\d.eE])")
_DIGITS_ALONE = bytes.maketrans(
    bytes(range(256)), bytes(48 if 48 <= code < 58 else 32 for code in range(256))
)
_LONG = b"0" * 19
"""What the pattern above needs, in a line with all its digits made zeros; looking for it first is forty times
faster."""


def _json_value(line: bytes) -> Any:
    """Return the value of one line. Integers beyond 64 bits stay exact, as texts, and NaN is a missing
    value."""
    try:
        if not (
            _LONG in line.translate(_DIGITS_ALONE) and _BEYOND_64_BITS.search(line)
        ):  # orjson would make floats of them
            return orjson.loads(line)
    except orjson.JSONDecodeError:
        if b"NaN" not in line:
            raise
    return plain(json.loads(line))


def _read_array(file: Path) -> Rows | None:
    """Return the rows of a file that is one array of objects; None for any other file."""
    with _opened(file) as stream:
        if not stream.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return None
        stream.seek(0)
        content = stream.read()
    try:
        rows = _json_value(content.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        return None
    if not rows:
        raise UsageError(f"{file}: holds no rows")
    if not all(isinstance(row, dict) for row in rows):
        return None
    keys = dict.fromkeys(key for row in rows for key in row)
    import pyarrow

    try:
        table = _table([{key: row.get(key) for key in keys} for row in rows])
    except (ValueError, pyarrow.ArrowTypeError, OverflowError) as error:
        raise UsageError(f"{file}: types differ between rows ({first_line(error)})") from error
    return Rows(table, str(file), folder=file.parent)


def _table(rows: Sequence[dict[str, Any]]) -> datasets.Dataset:
    """Return what ``datasets.Dataset.from_list`` does, without its hash of all values: it names files in
    which derived tables are kept, and a table in memory has none.

    Mappings of different keys keep their own ones, as they do from the hub.
    """
    import datasets
    import pyarrow

    table = pyarrow.Table.from_pylist(list(rows))
    if any(_holds_mappings(field.type) for field in table.schema):
        return datasets.Dataset.from_list(list(rows), on_mixed_types="use_json")
    return _dataset(table)


def _holds_mappings(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return types.is_struct(kind) or (types.is_list(kind) and _holds_mappings(kind.value_type))


def _dataset(table: pyarrow.Table) -> datasets.Dataset:
    import datasets

    return datasets.Dataset(table, fingerprint=datasets.fingerprint.generate_random_fingerprint())


def _first_misfit(file: Path, rows: Sequence[dict[str, Any]], lines: Sequence[int], otherwise: str) -> str:
    """Return where a column first holds another type than before, and which; ``otherwise`` if that is deep
    inside values."""
    first: dict[str, tuple[str, int]] = {}
    for row, line in zip(rows, lines, strict=True):
        for key, value in row.items():
            if value is None:
                continue
            kind = _TYPES.get(type(value), "mapping")
            before, there = first.setdefault(key, (kind, line))
            if before != kind:
                return (
                    f"{file}:{line}: types differ between rows ({key} is a {kind}, but a {before} in line "
                    f"{there})"
                )
    return f"{file}: types differ between rows ({otherwise})"


_TYPES = {str: "text", int: "number", float: "number", bool: "true or false", list: "list"}


def read_csv(file: Path, settings: Mapping[str, Any] | None = None) -> Rows:
    """Read all rows of a CSV file; types are pandas' (so that lm-eval reads the same rows).

    ``settings``: those of CSV_SETTINGS. UsageError with file and line for a row with more or fewer fields
    than the header, and for anything that is no CSV.
    """
    import datasets
    import pandas

    given = dict(settings or {})
    for key in given:
        if key not in CSV_SETTINGS:
            raise UsageError(f"{file}: unknown csv setting {key!r}{did_you_mean(key, CSV_SETTINGS)}")
    for ours, theirs in (("delimiter", "sep"), ("column_names", "names")):
        if given.get(ours) is not None:
            given[theirs] = given[ours]
        given.pop(ours, None)
    given.setdefault("sep", "\t" if form_of(file) == ".tsv" else ",")
    given.setdefault("encoding", "utf-8-sig")
    lines: list[int] = []
    longest = csv.field_size_limit(sys.maxsize)  # an image in base64 is longer than the usual limit
    try:
        counted = _UNCOUNTED.isdisjoint(given) and len(str(given["sep"])) == 1
        lines = _csv_lines(file, given) if counted else []
        with _opened(file) as stream:
            table = pandas.read_csv(stream, **given)
    except (UnicodeDecodeError, LookupError) as error:
        reason = (
            f"{error.reason} at byte {error.start}"
            if isinstance(error, UnicodeDecodeError)
            else first_line(error)
        )
        named = "UTF-8" if given["encoding"] == "utf-8-sig" else given["encoding"]
        raise UsageError(f"{file}: not {named} text ({reason})") from error
    except (csv.Error, pandas.errors.ParserError, TypeError, ValueError) as error:
        raise UsageError(f"{file}:{max(lines, default=0) + 1}: broken CSV ({first_line(error)})") from error
    finally:
        csv.field_size_limit(longest)
    if table.empty:
        raise UsageError(f"{file}: holds no rows")
    table.columns = [str(name) for name in table.columns]
    try:
        rows = datasets.Dataset.from_pandas(table, preserve_index=False)
    except OverflowError as error:
        raise UsageError(f"{file}: holds an integer beyond 64 bits, which datasets does not read") from error
    return Rows(rows, str(file), lines or None, file.parent)


def _csv_lines(file: Path, settings: Mapping[str, Any]) -> list[int]:
    """Return the line of every row; UsageError for one with another number of fields than the header."""
    dialect = {key: settings[key] for key in _PARSING if settings.get(key) is not None}
    headed = settings.get("header", "infer") in ("infer", 0) and settings.get("names") is None
    names = settings.get("names")
    lines: list[int] = []
    errors = settings.get("encoding_errors")
    with (
        _opened(file) as content,
        io.TextIOWrapper(content, settings["encoding"], errors, newline="") as stream,
    ):
        reader = csv.reader(stream, delimiter=str(settings["sep"]), strict=True, **dialect)
        header = next(reader, []) if headed else names
        before = reader.line_num
        for row in reader:
            header = row if header is None else header
            if row and len(row) != len(header):
                of = "the header has" if headed else "there should be"
                raise UsageError(f"{file}:{before + 1}: {len(row)} fields, but {of} {len(header)}")
            if row:
                lines.append(before + 1)
            before = reader.line_num
    if headed and (
        len(set(header or ())) < len(header or ()) or not all(name.strip() for name in header or ())
    ):
        raise UsageError(f"{file}:1: the header has empty or repeated names")
    if not lines:
        raise UsageError(f"{file}: holds no rows")
    return lines


def joined(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several files one after the other. UsageError if their columns differ."""
    import datasets

    if len(parts) == 1:
        return parts[0]
    for part in parts[1:]:
        if odd := {*part.table.column_names} ^ {*parts[0].table.column_names}:
            raise UsageError(f"{part.origin}: columns differ from those of {parts[0].origin}: {sorted(odd)}")
    try:
        table = datasets.concatenate_datasets([real_table(part.table) for part in parts])
    except (ValueError, TypeError) as error:
        raise UsageError(f"{parts[-1].origin}: types differ from those of {parts[0].origin}") from error
    folders = {part.folder for part in parts}
    folder = folders.pop() if len(folders) == 1 else None
    return JoinedRows(table, ", ".join(part.origin for part in parts), folder=folder, parts=tuple(parts))


def read_parquet(file: Path) -> Rows:
    """Read all rows of a Parquet file. UsageError if it is none, or empty."""
    import pyarrow
    import pyarrow.parquet

    try:
        whole = pyarrow.parquet.read_table(file)
        kept = _kept(whole)
        rows = whole.drop_columns(kept).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{file}: not a Parquet file ({first_line(error)})") from error
    if not rows:
        raise UsageError(f"{file}: holds no rows")
    try:
        table = pyarrow.Table.from_pylist(rows)
    except OverflowError as error:
        raise UsageError(f"{file}: holds an integer beyond 64 bits") from error
    for name in kept:
        table = table.append_column(name, whole.column(name))
    return Rows(
        _dataset(table.select(list(dict.fromkeys(whole.column_names)))), str(file), folder=file.parent
    )


def _kept(table: pyarrow.Table) -> list[str]:
    """Return the columns that are not made anew from Python's values; none if all are such.

    Images and other contents of files are large; integers without a sign and times to the nanosecond would
    change.
    """
    from pyarrow import types

    names = table.column_names
    kinds = {name: table.schema.field(name).type for name in names if names.count(name) == 1}
    kept = [
        name
        for name, kind in kinds.items()
        if types.is_uint64(kind) or getattr(kind, "unit", "") == "ns" or holds_contents(kind)
    ]
    return kept if len(kept) < len(names) else []


READERS: dict[str, Callable[[Path], Rows]] = {"json": read_jsonl, "csv": read_csv, "parquet": read_parquet}
"""Builder -> its reader."""


def read_file(file: Path) -> Rows:
    """Read the rows of a file, by its suffix. UsageError for another kind of file."""
    kind = SUFFIXES.get(form_of(file))
    if kind is None:
        raise UsageError(f"{file}: rows are read from {', '.join(SUFFIXES)}")
    return READERS[kind](file)
