"""The run folder: append-only records of items, atomic JSON files, one writer.

After a crash at any moment: every complete line of ``samples/*.jsonl`` is a finished item; a torn last line
(at most one a file) is cut off when the file is next opened for writing; ``run.json`` and ``results.json``
are either the old or the new version, never a mixture. The last record of an item is the one that counts.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import msgspec
import orjson

from cme_bench.runs.owner import owner_of, this_process
from cme_bench.scoring.record import Record
from cme_bench.tasks.values import summary
from cme_bench.util.decode import line_fault, without_absent
from cme_bench.util.errors import UsageError
from cme_bench.util.files import open_regular, storing
from cme_bench.util.locks import try_lock

SYNC_SECONDS = 5.0
_SYNCED_AT_ONCE = 16
"""Files that the disk is asked to have at once, which takes it about as long as one."""
LONGEST_LINE = 64 * 2**20
"""No record comes near so many bytes; a file without a newline may be larger than the memory."""

_RECORDS = msgspec.json.Decoder(Record)


def record_bytes(record: Record | Mapping[str, Any]) -> bytes:
    """Return one record, or an item's row, as JSON; of a value that JSON cannot hold (image bytes, say) a
    summary is kept."""
    return orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY, default=_recorded)


def _recorded(value: Any) -> Any:
    return without_absent(value) if isinstance(value, msgspec.Struct) else summary(value)


def read_records(file: Path) -> Iterator[Record]:
    """Yield the complete records of a samples file in the order they were written; none if there is no file.

    A torn last line is skipped; a line before it that is broken, or no record, is a UsageError with its
    number. So is a file that is none, or that leads out of its run folder.
    """
    if not file.exists():
        return
    with open_regular(file, inside=file.parent.parent) as stream:
        for number, line in enumerate(_lines(stream), start=1):
            if not line.endswith(b"\n"):
                if len(line) > LONGEST_LINE:
                    raise UsageError(f"{file}:{number}: longer than {LONGEST_LINE / 2**20:.0f} MiB")
                return
            try:
                yield _RECORDS.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise UsageError(f"{file}:{number}: broken record ({line_fault(error)})") from error


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file, of one that is too long its beginning."""
    return iter(lambda: stream.readline(LONGEST_LINE + 1), b"")


class RunWriter:
    """The one process that writes a run folder. Use as a context manager.

    Raises UsageError if the folder cannot be made or written, or if another process is writing it; CmeError
    if its disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._streams: dict[Path, IO[bytes]] = {}
        self._synced = time.monotonic()
        try:
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            self._lock = (folder / ".lock").open("a+")
        except OSError as err:
            raise UsageError(f"--out {folder}: cannot be written ({err.strerror or err})") from err
        if not try_lock(self._lock):
            self._lock.seek(0)
            owner = owner_of(self._lock.read())
            self._lock.close()
            who = "unknown" if owner is None else str(owner)
            raise UsageError(f"{folder} is being written by another run (process {who})")
        with storing(folder / ".lock"):
            self._sign()

    def _sign(self) -> None:
        """Write into the lock who holds it."""
        self._lock.truncate(0)
        self._lock.write(this_process().text)
        self._lock.flush()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, task: str, records: Iterable[Record]) -> None:
        """Write records in one go and hand them to the operating system: they survive this process."""
        file = samples_file(self.folder, task)
        lines = b"".join(record_bytes(r) + b"\n" for r in records)
        with storing(file):
            self._write(file, lines)

    def _write(self, file: Path, lines: bytes) -> None:
        if file not in self._streams:
            cut_torn_line(file)
            self._streams[file] = file.open("ab", buffering=0)
        stream = self._streams[file]
        while lines:
            lines = lines[stream.write(lines) :]
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(stream.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Flush to disk and release the folder."""
        streams, self._streams = self._streams, {}
        with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:  # map would give up those behind one that fails
            done = [pool.submit(_to_disk, file, stream) for file, stream in streams.items()]
        try:
            for each in done:
                each.result()
        finally:
            if not self._lock.closed:
                with contextlib.suppress(OSError):  # the lock itself ends with the file's closing
                    self._lock.truncate(0)
                self._lock.close()


def _to_disk(file: Path, stream: IO[bytes]) -> None:
    with stream, storing(file):
        os.fsync(stream.fileno())


def samples_file(folder: Path, task: str) -> Path:
    """Return where a run folder keeps the records of ``task``."""
    return folder / "samples" / f"{task}.jsonl"


def cut_torn_line(file: Path) -> None:
    """Remove what follows the last newline: the trace of a writer that was killed in the middle of a line."""
    if not file.exists():
        return
    with file.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            start = max(0, position - 65536)
            stream.seek(start)
            found = stream.read(position - start).rfind(b"\n")
            if found >= 0:
                position = start + found + 1
                break
            position = start
        if position != end:
            stream.truncate(position)
