"""Carrying what is done from one machine to the next in files of bounded size, that only grow in number.

Prompts and items do not travel, nor do weights, but those that are published. Only rows whose every job is
done are carried, as scores, answers and records of training. What was half done is done again.

``state-head.tar.xz`` says which recipe it is, and what was decided. The others, from ``state-000.tar.xz`` on,
hold units, each all of one row and seed; what units have in common is stored once a file. A file that came
from elsewhere is never written again, so a repository that keeps the state grows by what is new. A file is
replaced in one step, so one that was copied meanwhile lacks the last units at worst.
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

FILE_BYTES = 16 * 2**20
"""Most of a file."""
ROOM = 15 * 2**20
"""Bytes of units, before they are compressed, after which a file is closed and the next begun."""
RECIPE = "recipe.json"
_HEAD = (RECIPE, "rates.json", STAGE, RECORD)
_HEAD_FILE, _UNIT_FILES = "state-head.tar.xz", "state-[0-9]*.tar.xz"
_RUN_FILES = ("run.json", "results.json", "summary.csv")
_PRESET = 3
"""Of xz: three times as fast as the usual one, for a tenth more bytes."""


class State:
    """The files in ``parts`` that carry a folder's finished work."""

    def __init__(self, parts: Path, *, room: int = ROOM) -> None:
        self.parts, self.room = parts, room
        self._carried: set[str] = set()
        """Stored files; a unit goes by the marker of its first job."""
        self._open: list[bytes] = []
        """Members of the file that is being filled."""
        self._file: Path | None = None

    def pack(self, recipe: Recipe, folder: Folder) -> list[Path]:
        """Store the units that are not stored yet, and the head; return all files.

        CmeError for a unit that does not fit into a file.
        """
        self._make_place()
        added = False
        for jobs in _units(whole_jobs(recipe, folder)):
            name = str(folder.marker(jobs[0].name).relative_to(folder.path))
            if name in self._carried:
                continue
            unit = _members(folder, [file for job in jobs for file in _files_of(recipe, folder, job)])
            if self._open and sum(map(len, self._open)) + len(unit) > self.room:
                self._store()
                self._open, self._file = [], None
            self._open.append(unit)
            self._carried.add(name)
            added = True
        if added:
            self._store()
        head = [folder.path / name for name in _HEAD if (folder.path / name).is_file()]
        content, file = _compressed([_members(folder, head)]), self.parts / _HEAD_FILE
        if not file.is_file() or file.read_bytes() != content:
            write_bytes(file, content)
        return [file, *self._files()]

    def unpack(self, folder: Folder) -> bool:
        """Put back what :meth:`pack` wrote, where the folder is new; return whether it did.

        UsageError if a file is damaged, or nothing can be written there later.
        """
        self._make_place()
        files = [file for file in (self.parts / _HEAD_FILE, *self._files()) if file.is_file()]
        new = not any((folder.path / "jobs").glob("*.json"))
        for file in files:
            try:
                self._read(file, folder, put=new)
            except (tarfile.TarError, lzma.LZMAError, OSError) as error:
                raise UsageError(f"{file}: this part of the state is damaged ({error})") from error
        return bool(files) and new

    def _read(self, file: Path, folder: Folder, *, put: bool) -> None:
        """Put a file's content back, or note which units in it are those of the folder."""
        content = lzma.decompress(file.read_bytes())  # whole, or it is damaged
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            if put:
                archive.extractall(folder.path, filter="data")
                self._carried.update(archive.getnames())
                return
            for member in archive:
                stored = archive.extractfile(member)
                here = folder.path / member.name
                same = stored is not None and here.is_file() and here.read_bytes() == stored.read()
                if same:
                    self._carried.add(member.name)
                elif member.name == RECIPE:
                    raise UsageError(f"{self.parts} is the state of another recipe than {folder.path}")

    def _store(self) -> None:
        """Write the file that is being filled."""
        if self._file is None:
            numbers = [int(file.name.split(".")[0].removeprefix("state-")) for file in self._files()]
            self._file = self.parts / f"state-{max(numbers, default=-1) + 1:03d}.tar.xz"
        content = _compressed(self._open)
        if len(content) > FILE_BYTES:
            text = f"the state's {self._file.name} has {len(content):,} bytes, more than {FILE_BYTES:,}"
            raise CmeError(f"{text}; nothing is lost: lower the limit of items")
        write_bytes(self._file, content)

    def _make_place(self) -> None:
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"--state {self.parts}: cannot be written ({error.strerror or error})"
            raise UsageError(text) from error

    def _files(self) -> list[Path]:
        return sorted(self.parts.glob(_UNIT_FILES))


def _members(folder: Folder, files: Sequence[Path]) -> bytes:
    """Return files as members of a tar archive, texts without prompts and items."""
    buffer = io.BytesIO()
    for file in files:
        content = _slim(file) if file.suffix == ".jsonl" else file.read_bytes()
        entry = tarfile.TarInfo(str(file.relative_to(folder.path)))
        entry.size = len(content)
        buffer.write(entry.tobuf())
        buffer.write(content + b"\0" * (-len(content) % tarfile.BLOCKSIZE))
    return buffer.getvalue()


def _compressed(members: Sequence[bytes]) -> bytes:
    """Return a tar archive in xz."""
    return lzma.compress(b"".join(members) + b"\0" * (2 * tarfile.BLOCKSIZE), preset=_PRESET)


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
            yield from sorted(folder.router(job.row, by).glob("*.csv"))  # figures are drawn from them
    else:
        yield folder.efficiency(job.row, job.part)


def _present(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    return (folder / name for name in names if (folder / name).is_file())


def _slim(samples: Path) -> bytes:
    """Return the records without prompts and items: what tables and tests need is left."""
    return b"".join(
        record_bytes(structs.replace(record, prompt="", doc={})) + b"\n" for record in read_records(samples)
    )
