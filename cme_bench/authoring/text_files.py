"""Decode a file of text: what its first bytes or the user say, else UTF-8; nothing is guessed."""

from __future__ import annotations

from pathlib import Path

from cme_bench.authoring.new_options import FileOptions
from cme_bench.util.errors import UsageError

_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_OTHER_FORMS = (
    (b"PK\x03\x04", "an archive, as an Excel workbook is (save the sheet as CSV)"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook (save the sheet as CSV)"),
    (b"par1", "a Parquet file (name it .parquet)"),
    (b"arrow1", "an Arrow file (write it as Parquet)"),
    (b"sqlite format 3", "a SQLite database (write the table as CSV)"),
    (b"%pdf", "a PDF"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself ('git lfs pull' fetches it)"),
)
"""What files begin with, in lower case, that are named as rows and hold something else."""
_GUESSES = 3
_SHOWN = 60


def decoded(file: Path, content: bytes, options: FileOptions) -> str:
    """Return the text: a byte order mark decides its encoding, else ``--encoding``, else UTF-8.

    UsageError with the line for bytes that are no such text, and for a NUL character, which is in no text.
    """
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    encoding = marked or options.encoding or "utf-8"
    if marked is None and not options.encoding and (wide := _wide(content)):
        raise UsageError(f"{file}: seems to be UTF-16 without a byte order mark; say --encoding {wide}")
    try:
        text = content.decode(encoding)
    except LookupError:
        raise UsageError(f"--encoding {encoding}: no such encoding") from None
    except UnicodeError as error:
        place = getattr(error, "start", 0)
        hint = "" if options.encoding or marked else _hint(content, place)
        line = content[:place].count(b"\n") + 1
        raise UsageError(f"{file}:{line}: not {encoding.upper()} text (byte {place}){hint}") from error
    if (place := text.find("\0")) >= 0:
        raise UsageError(f"{file}:{text.count(chr(10), 0, place) + 1}: a NUL character, which no text has")
    return text.removesuffix("\x1a")  # the end of a file on DOS


def other_form(content: bytes) -> str:
    """Return what a file holds that is none of rows; empty if it may hold rows."""
    start = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((form for mark, form in _OTHER_FORMS if start.startswith(mark.lower())), "")


def _wide(content: bytes) -> str:
    """Return the UTF-16 that the places of NUL bytes speak for; empty if they are not every other byte."""
    start = content[:4096]
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros, others = start[first::2].count(0), start[1 - first :: 2].count(0)
        if zeros > len(start) / 8 and others < zeros / 20:
            return name
    return ""


def _hint(content: bytes, place: int) -> str:
    """Return which encodings the library thinks likely, and how the line at ``place`` reads in the first."""
    from charset_normalizer import from_bytes

    found = [each.encoding.replace("_", "-") for each in from_bytes(content[:100_000])]
    names = [name for name in found if not name.startswith("utf")][:_GUESSES] or ["cp1252"]
    line = content[content.rfind(b"\n", 0, place) + 1 :].split(b"\n", 1)[0]
    shown = line.decode(names[0], "replace").strip()[:_SHOWN]
    return f"; say --encoding {' or '.join(names)} (in {names[0]} the line is {shown!r})"
