"""Adapters that were trained on the very file that a task scores: they are not asked."""

from __future__ import annotations

from collections.abc import Iterable

from cme_bench.models.adapter import Adapter
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.suite import Suite
from cme_bench.util.errors import UsageError


def refuse_trained_rows(specs: Iterable[TaskSpec], adapters: Iterable[Adapter | None], suite: Suite) -> None:
    """Raise UsageError if an adapter's record names a file of rows that one of the tasks scores.

    A record names its rows by task and file. Rows that were only left out (``--spare``) do not count.
    """
    scored = {(spec.folder, stem): spec.name for spec in specs for stem in spec.file_stems(spec.eval_split)}
    for adapter in (each for each in adapters if each is not None):
        for part in adapter.trained:
            of = suite.tasks.get(part.task)
            if of is None or (name := scored.get((of.folder, part.split))) is None:
                continue
            raise UsageError(
                f"adapter {adapter.name} was trained on rows that {name} scores ({of.folder}/{part.split}: "
                f"{part.rows:,} rows); leave that task out, or train with --spare {name}"
            )
