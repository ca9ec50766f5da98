"""The training rows of made tasks as files of rows, a file a dataset, for recipes that train on images."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import orjson

from cme_bench.tasks.made.scenes import shuffled
from cme_bench.tasks.made.source import MadeSource
from cme_bench.tasks.made.training_rows import made_datasets, training_rows
from cme_bench.tasks.open_source import open_source, source_of
from cme_bench.tasks.sources import FolderSource
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError
from cme_bench.util.files import replacing
from cme_bench.util.locks import locked


def training_files(
    tasks: str, data: str, out: Path, *, limit: int | None = None, offline: bool = False
) -> Sequence[Path]:
    """Return ``out/DATASET/train.jsonl`` of every made dataset of ``tasks``, its images beside it; written on
    first use, by one process.

    ``limit``: so many rows of each, the first of a fixed shuffle. UsageError if a task is not made here, or a
    folder of data has no training rows.
    """
    out.mkdir(parents=True, exist_ok=True)
    suite = load_suite()
    specs = suite.select(tasks)
    chosen = made_datasets(suite, specs)
    if not chosen:
        raise UsageError(f"training_tasks: {tasks}: the rows of none of them are made here")
    source = open_source(data, offline=offline)
    files = []
    for spec in chosen:
        file = out / spec.dataset / "train.jsonl"
        files.append(file)
        with locked(out / f"{spec.dataset}.flock"):
            if file.is_file():
                continue
            own = source_of(spec, source)
            assert isinstance(own, FolderSource | MadeSource)
            rows = shuffled(random.Random(f"training {spec.dataset}"), list(training_rows(suite, spec, own)))
            _write(rows[:limit], own.folder, file)
    return files


def _write(rows: Sequence[dict[str, str]], folder: Path, file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    for image in dict.fromkeys(row["image"] for row in rows):
        to = file.parent / image
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / image, to)
    with replacing(file) as stream:
        stream.writelines(orjson.dumps(row) + b"\n" for row in rows)
