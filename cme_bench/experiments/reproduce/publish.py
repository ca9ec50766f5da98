"""The kept part of a reproduction: tables, figures, claims, configurations, and every run without texts."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from cme_bench.experiments.reproduce.jobs import Folder, Job, all_jobs
from cme_bench.experiments.reproduce.kept import FILES, is_kept
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.experiments.reproduce.registration import RECORD
from cme_bench.experiments.reproduce.stages import STAGE
from cme_bench.runs.pack import PACKED_FILES, one_a_line, pack_run
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json

TRAININGS, RUNS = "trainings.json", "runs.tar.xz"
FEW_RUNS = 50
"""So many runs are published as folders, more as one archive: they are mostly alike, and 300 kB each."""


def publish(recipe: Recipe, folder: Folder, out: Path) -> None:
    """Copy results into ``out``: tables, figures, claims, the trainings' records, packed runs.

    No texts of items, no raw rows of routers and losses, which the figures hold as csv, and weights of the
    recipe's ``kept`` rows alone.
    UsageError if ``out`` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("README.md", "claims.md", "claims.json", "recipe.json"):
            shutil.copy2(folder.path / name, out / name)
        for name in (STAGE, RECORD):
            if (folder.path / name).is_file():
                shutil.copy2(folder.path / name, out / name)
        for name in ("tables", "figures"):
            shutil.rmtree(out / name, ignore_errors=True)
            shutil.copytree(folder.path / name, out / name)
        jobs = all_jobs(recipe)
        trained = [trained_folder(folder, job) for job in jobs if job.kind in ("grid", "train")]
        (out / TRAININGS).write_bytes(training_records(folder.path, trained))
        for job in jobs:
            _publish_job(recipe, folder, job, out)
        publish_runs(folder, [job for job in jobs if job.kind == "evaluate"], out)
    except OSError as error:
        raise UsageError(f"--publish {out}: {error}") from error


def _publish_job(recipe: Recipe, folder: Folder, job: Job, out: Path) -> None:
    if job.kind == "train" and is_kept(recipe, job.row, job.seed):
        adapter = folder.adapter(job.row, job.seed)
        to = out / adapter.relative_to(folder.path)
        to.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy2(adapter / name, to / name)
    elif job.kind == "efficiency":
        file = folder.efficiency(job.row, job.part)
        to = out / file.relative_to(folder.path)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, to)


def publish_runs(folder: Folder, jobs: Sequence[Job], out: Path) -> None:
    """Write every run without texts: as folders, or in one archive."""
    runs = [folder.run(job.row, job.seed).relative_to(folder.path) for job in jobs]
    if len(jobs) <= FEW_RUNS:
        for job, run in zip(jobs, runs, strict=True):
            pack_run(folder.scores(job.row, job.seed), out / run)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for job, run in zip(jobs, runs, strict=True):
            if not folder.packed(job.row, job.seed).is_dir():
                pack_run(folder.scores(job.row, job.seed), Path(scratch) / run)
        with tarfile.open(out / RUNS, "w:xz") as archive:
            for name in PACKED_FILES:  # what is alike lies together
                for job, run in zip(jobs, runs, strict=True):
                    packed = folder.packed(job.row, job.seed)
                    file = (packed if packed.is_dir() else Path(scratch) / run) / name
                    if file.is_file():
                        _add(archive, str(run / name), file.read_bytes())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def trained_folder(folder: Folder, job: Job) -> Path:
    """Return where a job of kind "grid" or "train" writes its adapter."""
    return folder.adapter(job.row, job.seed) if job.rate is None else folder.grid(job.row, job.rate)


def training_records(root: Path, folders: Iterable[Path]) -> bytes:
    """Return the configurations and records of adapters as one JSON object, a line each.

    ``trainings``: by folder below ``root``, ``adapter_config.json`` and ``cme_training.json``. Mixtures and
    hashes of data, which many share, stand once in ``shared``, by the first digits of their sha256.
    """
    shared: dict[str, Any] = {}
    trainings = {}
    for folder in folders:
        training = read_json(folder / "cme_training.json")
        training["mixture"] = _once(training["mixture"], shared)
        training["identity"]["data"] = _once(training["identity"]["data"], shared)
        config = read_json(folder / "adapter_config.json")
        config.pop("rank_pattern", None)  # the ranks that AdaLoRA found, a number for each of its weights
        trainings[str(folder.relative_to(root))] = {"adapter_config": config, "training": training}
    return b'{"shared":%b,\n"trainings":%b}\n' % (one_a_line(shared), one_a_line(trainings))


def _once(part: Any, shared: dict[str, Any]) -> str:
    name = hashlib.sha256(orjson.dumps(part, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
    shared[name] = part
    return name
