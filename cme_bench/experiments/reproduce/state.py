"""Carrying what is done from one machine to the next in files of bounded size.

Prompts and items do not travel, nor do weights, but those that are published. Only rows whose every job is
done are carried, as scores, answers and records of training. What was half done is done again.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
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
_RUN_FILES = ("run.json", "results.json", "summary.csv")


def pack(recipe: Recipe, folder: Folder, parts: Path, *, part_bytes: int = PART_BYTES) -> list[Path]:
    """Write ``state-NN.tar.xz.part`` files, at most ``MOST_PARTS`` of ``part_bytes``, in place of those
    there. CmeError if more would be needed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, content in _carried(recipe, folder):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    content = buffer.getvalue()
    count = -(-len(content) // part_bytes)
    if count > MOST_PARTS:
        raise CmeError(
            f"the state has {len(content):,} bytes, more than {MOST_PARTS} parts of {part_bytes:,}; "
            f"{folder.path} is intact: lower the limit of items, or the seeds"
        )
    parts.mkdir(parents=True, exist_ok=True)
    files = [parts / f"state-{number:02d}.tar.xz.part" for number in range(count)]
    for number, file in enumerate(files):
        write_bytes(file, content[number * part_bytes : (number + 1) * part_bytes])
    for old in set(_parts(parts)) - set(files):
        old.unlink()
    return files


def unpack(folder: Folder, parts: Path) -> bool:
    """Put back what :func:`pack` wrote, where the folder is new; return whether it did.

    UsageError if the parts are damaged.
    """
    files = _parts(parts)
    if not files or any((folder.path / "jobs").glob("*.json")):
        return False
    content = io.BytesIO(b"".join(file.read_bytes() for file in files))
    try:
        with tarfile.open(fileobj=content, mode="r:xz") as archive:
            archive.extractall(folder.path, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(f"{parts}: the parts of the state do not fit together ({error})") from error
    return True


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.tar.xz.part"))


def _carried(recipe: Recipe, folder: Folder) -> Iterator[tuple[str, bytes]]:
    """Yield names from the folder, and contents."""
    root = folder.path
    for name in ("recipe.json", "rates.json", STAGE, RECORD):
        if (root / name).is_file():
            yield name, (root / name).read_bytes()
    for job in whole_jobs(recipe, folder):
        marker = folder.marker(job.name)
        yield str(marker.relative_to(root)), marker.read_bytes()
        for file in _files_of(recipe, folder, job):
            relative = str(file.relative_to(root))
            yield relative, _slim(file) if file.suffix == ".jsonl" else file.read_bytes()


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
