"""Files that are packed: gzip, bzip2, xz, Zstandard, or a zip archive around one file."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath

from cme_bench.util.errors import UsageError, first_line

PACKINGS = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Suffixes that say how a file is packed; the suffix before says what is in it."""
_MARKS = (
    (b"\x1f\x8b", ".gz"),
    (b"BZh", ".bz2"),
    (b"\xfd7zXZ\x00", ".xz"),
    (b"\x28\xb5\x2f\xfd", ".zst"),
    (b"PK\x03\x04", ".zip"),
)


def form_of(file: Path) -> str:
    """Return the suffix that says the form of the rows, in lower case, whether or not they are packed."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    while suffixes and suffixes[-1] in PACKINGS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def unpacked(file: Path) -> tuple[str, bytes]:
    """Return the suffix that says the form of the rows, and the bytes of ``file``, unpacked.

    What it begins with says whether a file is packed, since a packed file may be named as if it were not. The
    suffix of a zip archive without a second one is that of the file within. UsageError if the file cannot be
    read, is broken, or is an archive of several files.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror or error})") from error
    told = [suffix.lower() for suffix in file.suffixes]
    packing = next((name for mark, name in _MARKS if content.startswith(mark)), "")
    if packing == ".zip" and told[-1:] != [".zip"]:
        packing = ""  # a spreadsheet is an archive too
    if not packing and told[-1:] and told[-1] in PACKINGS:
        packing = told[-1]
    form = form_of(file)
    if packing == ".zip":
        inner, content = _of_zip(file, content)
        form = form or inner
    elif packing:
        content = _of_stream(file, content, packing)
    return form, content


def _of_stream(file: Path, content: bytes, packing: str) -> bytes:
    try:
        return _READERS[packing](content)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        kind = {".gz": "gzip", ".zst": "Zstandard"}.get(packing, packing[1:])
        raise UsageError(f"{file}: broken {kind} file ({first_line(error)})") from error


def _of_zip(file: Path, content: bytes) -> tuple[str, bytes]:
    """Return the suffix and the bytes of the one file in an archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and not _is_hidden(name)]
            if len(names) != 1:
                held = ", ".join(names[:5]) or "no file"
                raise UsageError(f"{file}: an archive of rows holds one file, but this one has {held}")
            return PurePath(names[0]).suffix.lower(), archive.read(names[0])
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise UsageError(f"{file}: broken zip file ({first_line(error)})") from error


def _is_hidden(name: str) -> bool:
    return name.startswith("__MACOSX/") or PurePath(name).name.startswith(".")


def _zstandard(content: bytes) -> bytes:
    import pyarrow

    with pyarrow.input_stream(io.BytesIO(content), compression="zstd") as stream:
        return bytes(stream.read())


_READERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": _zstandard,
}
