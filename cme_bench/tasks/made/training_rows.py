"""Training rows of ``cme_mm``: its training pictures with its own questions, for ``train --data``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from cme_bench.tasks.build import build_task
from cme_bench.tasks.made.make import make_split
from cme_bench.tasks.made.rows import TRAIN
from cme_bench.tasks.sources import DataSource, FolderSource, is_made
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.suite import Suite
from cme_bench.util.files import replacing, storing

FILE = "cme_mm.train.jsonl"


def write_training_rows(suite: Suite, specs: Iterable[TaskSpec], folder: Path) -> int:
    """Write ``folder/cme_mm.train.jsonl``: a row a question of the training splits of the datasets that
    ``specs`` belong to, with ``image``, ``instruction`` and ``output``. Return how many; 0 if none is made.

    CmeError if a package cannot be had.
    """
    chosen = made_datasets(suite, specs)
    if not chosen:
        return 0
    count = 0
    with storing(folder, note="the training rows are not complete"):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / FILE) as stream:
            for spec in chosen:
                source = FolderSource(folder)
                if source.missing(spec, TRAIN):
                    make_split(spec.dataset, TRAIN, folder / spec.folder)
                for row in training_rows(suite, spec, source):
                    stream.write(orjson.dumps(row) + b"\n")
                    count += 1
    return count


def made_datasets(suite: Suite, specs: Iterable[TaskSpec]) -> list[TaskSpec]:
    """Return the generated task of each dataset that is made here and that ``specs`` belong to."""
    chosen: dict[str, TaskSpec] = {}
    for spec in specs:
        if is_made(spec):
            chosen.setdefault(spec.dataset, suite.task(spec.name.removesuffix("_ll")))
    return list(chosen.values())


def training_rows(suite: Suite, spec: TaskSpec, source: DataSource) -> Iterator[dict[str, Any]]:
    """Yield a row a question of the training split of a made task: ``image``, its path below the source's
    folder, ``instruction`` and ``output``."""
    metadata = {**spec.metadata, "splits": {}}
    training = replace(spec, config={**spec.config, "test_split": TRAIN, "metadata": metadata})
    task = build_task(training, suite, source)
    for doc in task.docs:
        gold = task.lm_eval.gold_answer(doc)
        answer = gold.choices[gold.gold] if gold.choices else gold.references[0]
        yield {
            "image": f"{spec.folder}/{doc['image']}",
            "instruction": task.lm_eval.doc_to_text(doc),
            "output": answer,
        }
