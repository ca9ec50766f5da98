"""Read a CSV file of any dialect: found by a library, then held to it strictly, row by row."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from cme_bench.util.errors import UsageError, first_line

SEPARATORS = (",", ";", "\t", "|")
_MARK = '"'
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", ":": "colon", " ": "blank"}
_SAMPLE = 50_000
"""Characters that the dialect is found by."""
_COMMENT = re.compile(r"(#[^\r\n]*)(?:\r\n|\r|\n)")
_MARKDOWN = re.compile(r"[^\n]*\n[ |:-]*---[ |:-]*\n")
"""A header and a line of dashes."""
_JSON = re.compile(r'\s*(?:\[\s*)?\{\s*"')
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)?")
_SENTENCE = 5
"""A name of a column has fewer words."""
_ESCAPED = re.compile(r'(?<!\\)((?:\\\\)*)\\"')
"""A quotation mark after a backslash that no other one takes back."""


@dataclass(frozen=True, slots=True)
class CsvText:
    """One reading of a CSV text. ``lines[i]``: the line on which ``rows[i]`` begins; ``note``: how it was
    read, where that is not the usual way."""

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    note: str = ""


class CsvError(ValueError):
    """A text that does not fit a dialect; ``line`` is where; ``columns``: how many its header has there."""

    def __init__(self, line: int, message: str, columns: int) -> None:
        super().__init__(message)
        self.line, self.columns = line, columns


def read_csv_text(text: str, origin: str, *, separator: str | None, quotes: str | None) -> CsvText:
    """Return the rows of a CSV text, every field a text as it stands there.

    Args:
        text: The whole file, decoded.
        origin: Its path, for messages.
        separator: What parts fields; None finds it.
        quotes: The mark that encloses fields, empty for none; None finds whether ``"`` does.

    Raises UsageError with file and line for a row that has more or fewer fields than the header, for a first
    line that is a row, and where two readings fit and give different rows.
    """
    if _MARKDOWN.match(text):
        raise UsageError(f"{origin}:2: holds a table of Markdown; save it as CSV")
    if _JSON.match(text):
        raise UsageError(f"{origin}: holds JSON; name it .json, or .jsonl with an object a line")
    text, comments = _without_comments(text)
    text, stated = _told_separator(text)
    first = 1 + comments + bool(stated)
    separator = separator or stated
    worst: CsvError | None = None
    readings: dict[str, CsvText] = {}
    for each in [separator] if separator else _candidates(text):
        try:
            readings[each] = _read(text, origin, each, quotes, first)
        except CsvError as error:
            worst = max(worst, error, key=lambda e: e.columns) if worst else error
    several = [each for each, read in readings.items() if len(read.header) > 1]
    if len(several) > 1:
        ways = " or ".join(f"{_NAMES.get(each, each)}" for each in several)
        raise UsageError(f"{origin}: can be read as parted by {ways}; say --sep '{several[0]}'")
    if worst is not None and not several and (not readings or worst.columns > 1):
        raise UsageError(f"{origin}:{worst.line}: {worst} (--sep and --quote say how the file is written)")
    read = readings[(several or list(readings))[0]]
    _check_header(read, f"{origin}:{first}")
    if quotes is None:
        _refuse_enclosed(read, origin)
    said = f"{comments} lines of comments (#) before the header left out" if comments else ""
    return replace(read, note="; ".join(note for note in (said, read.note) if note))


def _check_header(read: CsvText, place: str) -> None:
    """Refuse a first line that is a row: a cell of it stands again and again in its own column, and another
    one is a number or a sentence."""
    if not any(_NUMBER.fullmatch(name) or len(name.split()) >= _SENTENCE for name in read.header):
        return
    for number, name in enumerate(read.header):
        again = sum(row[number].strip() == name for row in read.rows)
        if name and again > 1 and 20 * again >= len(read.rows):
            raise UsageError(
                f"{place}: seems to be a row, not the names of columns ({name!r} stands in {again} rows of "
                "its column): put a line of names before it"
            )


def _refuse_enclosed(read: CsvText, origin: str) -> None:
    """Refuse rows of which a column has every field in single quotation marks: they may enclose fields."""
    for number, name in enumerate(read.header):
        fields = [row[number].strip() for row in read.rows if row[number].strip()]
        if len(fields) > 1 and all(len(f) > 1 and f[0] == f[-1] == "'" for f in fields):
            raise UsageError(
                f"{origin}: every field of {name} stands in single quotation marks ({fields[0]}); say "
                "--quote single if they enclose fields, --quote no if they are characters"
            )


def _without_comments(text: str) -> tuple[str, int]:
    """Return the text without the lines before its header that begin with "#" and part nothing, and their
    number."""
    lines = 0
    while (m := _COMMENT.match(text)) and not any(each in m[1] for each in SEPARATORS):
        text = text[m.end() :]
        lines += 1
    return text, lines


def _told_separator(text: str) -> tuple[str, str | None]:
    """Return the text without Excel's first line ``sep=;``, and what that line says."""
    head, _, rest = text.partition("\n")
    head = head.strip().lower()
    return (rest, head[4:]) if head.startswith("sep=") and len(head) == 5 else (text, None)


def _candidates(text: str) -> list[str]:
    """Return the separators to try, the library's first."""
    import clevercsv

    try:
        dialect = clevercsv.Detector().detect(text[:_SAMPLE], delimiters=list(SEPARATORS))
    except clevercsv.exceptions.NoDetectionResult:
        dialect = None
    first = dialect.delimiter if dialect is not None else ""
    header = _head(text)
    usual = sorted(SEPARATORS, key=header.count, reverse=True)
    return list(dict.fromkeys([*([first] if first in SEPARATORS else []), *usual]))


def _read(text: str, origin: str, separator: str, quotes: str | None, first: int) -> CsvText:
    if quotes is not None:
        return _strict(text, separator, quotes, first)
    try:
        quoted = _strict(text, separator, _MARK, first)
    except CsvError as error:
        if '"' not in text:
            raise
        named = f"parted by {_NAMES.get(separator, separator)}"
        if (escaped := _escaped(text, separator, first)) is not None:
            return replace(escaped, note=f'{named}, \\" read as a quotation mark')
        bare = _strict(text, separator, "", first)
        if _mostly_enclosed(bare):
            raise error  # a mark is missing somewhere
        return replace(bare, note=f'{named}, quotation marks (") kept as characters')
    if '"' in text and (bare_rows := _bare_rows(text, separator, first)) not in (None, len(quoted.rows)):
        raise UsageError(
            f"{origin}: can be read in two ways: {len(quoted.rows)} rows if quotation marks enclose fields, "
            f"{bare_rows} if they are characters; say --quote yes or --quote no"
        )
    note = "" if separator in (",", "\t") else f"parted by {_NAMES.get(separator, repr(separator))}"
    return replace(quoted, note="; ".join(each for each in (note, quoted.note) if each))


def _mostly_enclosed(read: CsvText) -> bool:
    """Return whether most fields with quotation marks have one at both ends: they are no characters then."""
    marked = [field for row in read.rows for field in row if '"' in field]
    return 2 * sum(len(f) > 1 and f.startswith('"') and f.endswith('"') for f in marked) > len(marked)


def _escaped(text: str, separator: str, first: int) -> CsvText | None:
    """Return the rows where a backslash, not a second quotation mark, keeps one; None if they do not fit."""
    doubled = _ESCAPED.sub(r'\1""', text)
    try:
        return _strict(doubled, separator, _MARK, first) if doubled != text else None
    except CsvError:
        return None


def _head(text: str) -> str:
    """Return the first line, whichever of the three line ends is used."""
    return re.split(r"[\r\n]", text, maxsplit=1)[0]


def _bare_rows(text: str, separator: str, first: int) -> int | None:
    """Return the number of rows if quotation marks mean nothing; None if the rows do not fit the header
    then."""
    try:
        return len(_strict(text, separator, "", first).rows)
    except CsvError:
        return None


def _strict(text: str, separator: str, quotes: str, first: int) -> CsvText:
    """Return the rows in one dialect, ``quotes`` around fields if it is not empty; CsvError for a row that
    does not fit the header.

    Blanks after a separator are part of no field where a quoted field, or the header, follows them.
    """
    spaced = f"{separator} " in _head(text)
    with _long_fields():
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=separator,
            quotechar=quotes or _MARK,
            quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
            skipinitialspace=spaced,
            strict=True,
        )
        rows: list[list[str]] = []
        lines: list[int] = []
        header: list[str] | None = None
        before = repeated = 0
        try:
            for row in reader:
                line, before = before + first, reader.line_num
                if not any(field.strip() for field in row):
                    continue
                if header is None:
                    header = [name.strip() for name in row]
                elif len(header) > 1 and [name.strip() for name in row] == header:
                    repeated += 1
                elif len(row) != len(header) and not (len(row) == len(header) + 1 and not row[-1].strip()):
                    raise _uneven(line, row, header)
                else:
                    rows.append(row)
                    lines.append(line)
        except csv.Error as err:
            raise CsvError(before + first, f"broken CSV ({first_line(err)})", len(header or ())) from err
    note = f"{repeated} rows that repeat the header left out" if repeated else ""
    return _without_trailing(CsvText(header or [], rows, lines, note))


def _uneven(line: int, row: Sequence[str], header: Sequence[str]) -> CsvError:
    return CsvError(line, f"{len(row)} fields, but the header has {len(header)}", len(header))


def _without_trailing(read: CsvText) -> CsvText:
    """Return the rows without an empty field behind the last one, if every row has one; CsvError if some
    do."""
    longer = [index for index, row in enumerate(read.rows) if len(row) > len(read.header)]
    if not longer:
        return read
    if len(longer) < len(read.rows):
        raise _uneven(read.lines[longer[0]], read.rows[longer[0]], read.header)
    rows = [row[:-1] for row in read.rows]
    note = "every row ends in a separator, the header does not"
    return replace(read, rows=rows, note="; ".join(each for each in (read.note, note) if each))


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let fields be as long as they are (csv stops at 131,072 characters)."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
