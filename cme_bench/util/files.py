"""Whole files: written in one step, read as a JSON object, with one line of what went wrong.

A reader sees the old contents or the new ones, never a mixture: the new file is written beside the old one
and renamed over it, once the disk has it where it is to stay. A process that dies in between leaves a file
``.NAME.tmp`` behind.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson
from msgspec import Struct

from cme_bench.util.decode import without_absent
from cme_bench.util.errors import CmeError, UsageError

MOST_JSON = 256 * 2**20
"""No JSON file of ours comes near so many bytes; a larger one would only use up the memory."""
INTACT = "what was stored before is intact: make room or mend the folder, then run the same command again"


@contextmanager
def storing(file: Path, note: str = INTACT) -> Iterator[None]:
    """Raise what the operating system says of writing ``file`` as a CmeError, followed by ``note``."""
    try:
        yield
    except OSError as error:
        text = f"cannot write {file} ({error.strerror or error})"
        raise CmeError(f"{text}; {note}" if note else text) from error


@contextmanager
def replacing(file: Path, *, to_disk: bool = True) -> Iterator[IO[bytes]]:
    """Yield a stream whose contents replace ``file`` in one step, unless the block raises.

    ``to_disk``: wait until the disk has them. Without it they survive this process, but not a loss of power.
    """
    scratch = file.with_name(f".{file.name}.tmp")
    with scratch.open("wb") as stream:
        yield stream
        stream.flush()
        if to_disk:
            os.fsync(stream.fileno())
    scratch.replace(file)


def write_bytes(file: Path, content: bytes, *, to_disk: bool = True) -> None:
    """Replace ``file`` by ``content`` in one step, as ``replacing``. CmeError if it cannot be written."""
    with storing(file), replacing(file, to_disk=to_disk) as stream:
        stream.write(content)


def write_json(file: Path, value: Mapping[str, Any] | Struct, *, to_disk: bool = True) -> None:
    """Replace ``file`` by ``value`` in one step, as ``replacing``. CmeError if it cannot be written."""
    option = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
    write_bytes(file, orjson.dumps(value, option=option, default=without_absent), to_disk=to_disk)


def write_text(file: Path, text: str, *, to_disk: bool = True) -> None:
    """Replace ``file`` by ``text`` in one step, as ``replacing``. CmeError if it cannot be written."""
    write_bytes(file, text.encode(), to_disk=to_disk)


def read_json(
    file: Path,
    *,
    kind: str = "a run folder",
    error_class: type[CmeError] = UsageError,
    inside: Path | None = None,
    most: int = MOST_JSON,
) -> dict[str, Any]:
    """Return the JSON object in a file; ``kind`` says what its folder should be.

    ``error_class`` is raised if the file is absent, cannot be read, is broken, holds something else or more
    than ``most`` bytes, or leads out of the folder ``inside``.
    """
    try:
        with open_regular(file, inside=inside, error_class=error_class) as stream:
            content = stream.read(most + 1)
        if len(content) > most:
            raise error_class(f"{file}: larger than {most / 2**20:.0f} MiB, which {kind} is not")
        value = orjson.loads(content)
    except FileNotFoundError as error:
        raise error_class(f"{file}: no such file; is {file.parent} {kind}?") from error
    except OSError as error:
        raise error_class(f"{file}: cannot be read ({error.strerror or error})") from error
    except orjson.JSONDecodeError as error:
        raise error_class(f"{file}: broken JSON ({error})") from error
    if not isinstance(value, dict):
        raise error_class(f"{file}: not a JSON object")
    return value


def open_regular(
    file: Path, *, inside: Path | None = None, error_class: type[CmeError] = UsageError
) -> IO[bytes]:
    """Open a file for reading, as whoever made it may not be trusted.

    ``error_class`` is raised for what is no regular file (a pipe would be waited for without end), and for a
    link that leads out of the folder ``inside``. OSError if it is absent or cannot be read.
    """
    if inside is not None and not leads_inside(file, inside):
        raise error_class(f"{file}: leads out of {inside}, so it is not read; copy the files that links name")
    handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise error_class(f"{file}: not a regular file")
    return os.fdopen(handle, "rb")


def leads_inside(file: Path, folder: Path) -> bool:
    """Return whether a path, its links followed, lies in ``folder``, whose own links are followed too."""
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))
