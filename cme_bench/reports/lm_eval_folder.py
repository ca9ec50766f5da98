"""A run as lm-eval stores its own: results and samples in its folder, for what reads those."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cme_bench.harness.results_folder import hashes, write_results_folder
from cme_bench.reports.runs import RunView
from cme_bench.runs.store import read_records, samples_file
from cme_bench.scoring.record import Record
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json


def write_lm_eval_folder(run: RunView, out: Path) -> Path:
    """Write a finished run in lm-eval's layout below ``out``; return the folder of its files.

    Samples of a task have one line an answer. What lm-eval has no place for, such as the means over domains,
    stays under ``cme``. UsageError if the run is not finished or its samples are not there.
    """
    if not run.finished:
        raise UsageError(f"{run.folder}: the run is not finished; the same command goes on with it")
    tasks = list(run.results.tasks)
    for task in tasks:
        if not samples_file(run.folder, task).is_file():
            raise UsageError(f"{samples_file(run.folder, task)}: no such file; lm-eval's folder has samples")
    return write_results_folder(
        out,
        read_json(run.folder / "results.json"),
        {task: list(_samples(run.folder, task)) for task in tasks},
        engine=run.run.identity.engine,
        name=run.label.replace(" ", ""),
        seconds=run.run.seconds,
    )


def _samples(folder: Path, task: str) -> Iterator[dict[str, Any]]:
    records = sorted(read_records(samples_file(folder, task)), key=lambda record: (record.id, record.repeat))
    return (sample(record) for record in records)


def sample(record: Record) -> dict[str, Any]:
    """Return a stored record in the shape of lm-eval's ``log_samples``."""
    values = record.response.values
    generated = record.response.text is not None
    asked: list[Any] = [{}] if generated else record.choices[: len(values)]
    answer = record.answer.text if generated and record.answer is not None else None
    return {
        "doc_id": record.id,
        "doc": record.doc,
        "target": record.target,
        "arguments": [(record.prompt, what) for what in asked],
        "resps": [[value] for value in values],
        "filtered_resps": values if answer is None else [answer],
        "filter": "none",
        "metrics": list(record.scores),
        **hashes(record.doc, record.prompt, record.target),
        **record.scores,
    }
