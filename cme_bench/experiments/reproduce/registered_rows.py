"""Hashes of the files of rows that a recipe trains on and scores, for its registration."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.models.checkpoint import hash_file
from cme_bench.tasks.open_source import open_source
from cme_bench.tasks.sources import FolderSource
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.suite import Suite, load_suite
from cme_bench.training.mixture import find_part
from cme_bench.training.templates import DatasetTemplate, load_templates, select_datasets


@functools.cache
def suite() -> Suite:
    """Return the built-in suite, read once a process."""
    return load_suite()


@functools.cache
def _templates() -> dict[str, DatasetTemplate]:
    return load_templates(suite())


def row_files(recipe: Recipe, tasks: Sequence[TaskSpec]) -> dict[str, str]:
    """Return ``dataset/file.jsonl -> sha256`` of every file that is trained on or scored, where the data are
    a folder; of the hub only that they come from there, since it names its own commits.

    UsageError if a scored file is not there.
    """
    source = open_source(recipe.data, offline=True)
    if not isinstance(source, FolderSource):
        return {"source": source.name}
    files = {source.file(spec, spec.eval_split): spec for spec in tasks}
    for file, spec in files.items():
        if not file.is_file():
            source.rows(spec, spec.eval_split)  # says what is missing
    found = {*files, *_trained(recipe, source)}
    return {f"{file.parent.name}/{file.name}": hash_file(file) for file in sorted(found)}


def _trained(recipe: Recipe, source: FolderSource) -> set[Path]:
    chosen = str(recipe.training.get("datasets", "all"))
    found = set()
    for template in select_datasets(_templates(), chosen):
        for part in template.parts:
            if (place := find_part(part, source)) is not None:
                found.add(source.folder / (place.folder or part.task.folder) / f"{place.stem}.jsonl")
    return found
