"""Carrying what is done from one machine to the next in files of bounded size.

Prompts and items do not travel, nor do weights, but those that are published. Only rows whose every job is
done are carried, as scores, answers and records of training. What was half done is done again.

The files together are tar archives in xz, one behind the other (``tar --ignore-zeros``). Each archive is a
unit: all of one row and seed. A unit is compressed once, however often the files are written, and files that
were copied while they were written lack a unit at worst.
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import structs

from cme_bench.experiments.reproduce.jobs import Folder, Job, all_jobs
from cme_bench.experiments.reproduce.kept import FILES, TRAINING_FILES, is_kept
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.experiments.reproduce.registration import RECORD
from cme_bench.experiments.reproduce.stages import STAGE
from cme_bench.runs.store import read_records, record_bytes
from cme_bench.util.errors import CmeError, UsageError
from cme_bench.util.files import write_bytes

PART_BYTES = 16 * 2**20
MOST_PARTS = 8
_HEAD = ("recipe.json", "rates.json", STAGE, RECORD)
_RUN_FILES = ("run.json", "results.json", "summary.csv")
_PRESET = 3
"""Of xz: three times as fast as the usual one, for a tenth more bytes."""


class State:
    """The files in ``parts`` that carry a folder's finished work."""

    def __init__(self, parts: Path) -> None:
        self.parts = parts
        self._units: dict[str, bytes] = {}
        """Compressed units by the first file in them."""

    def pack(self, recipe: Recipe, folder: Folder, *, part_bytes: int = PART_BYTES) -> list[Path]:
        """Write ``state-NN.tar.xz.part`` files, at most ``MOST_PARTS`` of ``part_bytes``, in place of those
        there. CmeError if more would be needed."""
        head = [folder.path / name for name in _HEAD if (folder.path / name).is_file()]
        streams = [_compressed(folder, head)]
        for jobs in _units(whole_jobs(recipe, folder)):
            name = str(folder.marker(jobs[0].name).relative_to(folder.path))
            if name not in self._units:
                files = [file for job in jobs for file in _files_of(recipe, folder, job)]
                self._units[name] = _compressed(folder, files)
            streams.append(self._units[name])
        contents = _filled(streams, part_bytes)
        if len(contents) > MOST_PARTS:
            raise CmeError(
                f"the state has {sum(map(len, streams)):,} bytes, more than {MOST_PARTS} parts of "
                f"{part_bytes:,}; {folder.path} is intact: lower the limit of items, or the seeds"
            )
        self._make_place()
        files = [self.parts / f"state-{number:02d}.tar.xz.part" for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            write_bytes(file, content)
        for old in set(self._files()) - set(files):
            old.unlink()
        return files

    def unpack(self, folder: Folder) -> bool:
        """Put back what :meth:`pack` wrote, where the folder is new; return whether it did.

        UsageError if the files are damaged, or nothing can be written there later.
        """
        self._make_place()
        files = self._files()
        if not files or any((folder.path / "jobs").glob("*.json")):
            return False
        try:
            for stream in _streams(b"".join(file.read_bytes() for file in files)):
                with tarfile.open(fileobj=io.BytesIO(stream), mode="r:xz") as archive:
                    self._units.update((name, stream) for name in archive.getnames()[:1])
                    archive.extractall(folder.path, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise UsageError(f"{self.parts}: the parts of the state do not fit together ({error})") from error
        return True

    def _make_place(self) -> None:
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"--state {self.parts}: cannot be written ({error.strerror or error})"
            raise UsageError(text) from error

    def _files(self) -> list[Path]:
        return sorted(self.parts.glob("state-*.tar.xz.part"))


def _compressed(folder: Folder, files: Sequence[Path]) -> bytes:
    """Return a tar archive in xz, of texts without prompts and items."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in files:
            content = _slim(file) if file.suffix == ".jsonl" else file.read_bytes()
            entry = tarfile.TarInfo(str(file.relative_to(folder.path)))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return lzma.compress(buffer.getvalue(), preset=_PRESET)


def _streams(content: bytes) -> Iterator[bytes]:
    """Yield the xz streams that lie one behind the other in ``content``."""
    if not content:
        raise EOFError("they are empty")
    while content:
        reader = lzma.LZMADecompressor()
        reader.decompress(content)
        if not reader.eof:
            raise EOFError("the last one is cut")
        yield content[: len(content) - len(reader.unused_data)]
        content = reader.unused_data


def _filled(streams: Sequence[bytes], size: int) -> list[bytes]:
    """Return the streams in order, in parts of at most ``size``; only those that are larger are cut."""
    parts = [bytearray()]
    for stream in streams:
        if parts[-1] and len(parts[-1]) + len(stream) > size:
            parts.append(bytearray())
        for start in range(0, len(stream), size):
            piece = stream[start : start + size]
            if len(parts[-1]) + len(piece) > size:
                parts.append(bytearray())
            parts[-1] += piece
    return [bytes(part) for part in parts]


def _units(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs that travel together, in the order of their first."""
    units: dict[tuple[str, int] | str, list[Job]] = {}
    for job in jobs:
        units.setdefault((job.row, job.seed) if job.kind in _OF_ROW else job.name, []).append(job)
    return list(units.values())


def whole_jobs(recipe: Recipe, folder: Folder) -> list[Job]:
    """Return the finished jobs that stand without weights: those of rows and seeds of which everything is
    done."""
    jobs = all_jobs(recipe)
    left = [job for job in jobs if job.kind in _OF_ROW and not folder.is_done(job.name)]
    open_rows = {(row, job.seed) for job in left for row in (job.row, made_of(recipe, job.row))}
    return [
        job
        for job in jobs
        if folder.is_done(job.name) and (job.kind not in _OF_ROW or (job.row, job.seed) not in open_rows)
    ]


_OF_ROW = ("train", "evaluate", "router")


def made_of(recipe: Recipe, row: str) -> str:
    """Return the row whose adapters a row needs: its own, unless it keeps experts of another."""
    found = recipe.rows.get(row)
    return row if found is None else found.busiest_of or row


def _files_of(recipe: Recipe, folder: Folder, job: Job) -> Iterator[Path]:
    yield folder.marker(job.name)
    if job.kind == "grid" and job.rate is not None:
        yield from _present(folder.grid(job.row, job.rate), TRAINING_FILES)
    elif job.kind == "train":
        kept = is_kept(recipe, job.row, job.seed)
        yield from _present(folder.adapter(job.row, job.seed), FILES if kept else TRAINING_FILES)
    elif job.kind == "evaluate":
        packed = folder.packed(job.row, job.seed)
        if packed.is_dir():
            yield from sorted(packed.glob("*.json"))
            return
        run = folder.run(job.row, job.seed)
        yield from _present(run, _RUN_FILES)
        yield from sorted((run / "samples").glob("*.jsonl"))
    elif job.kind == "router":
        for by in ("domain", "subject"):
            yield from sorted(folder.router(job.row, by).glob("*"))
    else:
        yield folder.efficiency(job.row, job.part)


def _present(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    return (folder / name for name in names if (folder / name).is_file())


def _slim(samples: Path) -> bytes:
    """Return the records without prompts and items: what tables and tests need is left."""
    return b"".join(
        record_bytes(structs.replace(record, prompt="", doc={})) + b"\n" for record in read_records(samples)
    )
