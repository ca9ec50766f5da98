"""Reading a run folder, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from cme_bench.prompts.items import limited_ids
from cme_bench.runs.packed import packed_records, scores_file
from cme_bench.runs.records import ReadArguments, Results, RunRecord, TaskRecord
from cme_bench.runs.store import read_records, samples_file
from cme_bench.scoring.record import Record
from cme_bench.scoring.repeats import merged
from cme_bench.util.decode import decoded
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json


class _ResultsFile(Struct):
    """``results.json``; what stands beside our part is lm-eval's."""

    cme: Results


MOST_RECORD = 64 * 2**20
"""No run.json or results.json comes near so many bytes."""
_LONGEST_NAME = 240
"""Bytes of a task's name; with ``.jsonl`` it is the name of a file."""


def run_file(folder: Path) -> Path:
    """Return where a run folder's ``run.json`` is."""
    return folder / "run.json"


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` is a run folder."""
    return run_file(folder).is_file()


def read_run(folder: Path) -> RunRecord:
    """Return ``run.json``. UsageError if it is absent, broken, or not what a run writes."""
    file = run_file(folder)
    content = read_json(file, inside=folder, most=MOST_RECORD)
    content = {key: value for key, value in content.items() if value is not None}
    run = decoded(content, RunRecord, str(file))  # a part that is null is as one that is missing
    _check_names(run.tasks, file)
    read_arguments(run, file)
    return run


def read_arguments(run: RunRecord, file: Path) -> ReadArguments:
    """Return those of the run's arguments that are needed again. UsageError as for :func:`read_run`."""
    return decoded(dict(run.arguments or {}), ReadArguments, f"{file}: arguments")


def read_results(folder: Path) -> Results:
    """Return our part of ``results.json``. UsageError as for :func:`read_run`, or if its parts contradict
    each other."""
    file = folder / "results.json"
    results = decoded(read_json(file, inside=folder, most=MOST_RECORD), _ResultsFile, str(file)).cme
    _check_names(results.tasks, file)
    for name, task in results.tasks.items():
        if task.primary not in task.metrics:
            raise UsageError(f"{file}: task {name} has no score {task.primary!r}")
        form = results.forms.get(task.form)
        domains = form.domains if form else {}
        if task.domain not in domains and name not in domains:
            raise UsageError(f"{file}: task {name} has no domain {task.domain!r} in form {task.form!r}")
    return results


def _check_names(tasks: Iterable[str], file: Path) -> None:
    """Raise UsageError for a task whose name would name another folder's file, or none."""
    for name in tasks:
        if Path(name).name != name or "\0" in name or len(name.encode(errors="replace")) > _LONGEST_NAME:
            raise UsageError(f"{file}: {name[:_LONGEST_NAME]!r} is no task's name")


def read_both(folder: Path) -> tuple[RunRecord, Results]:
    """Return ``run.json`` and our part of ``results.json``, whose tasks the first one knows."""
    run, results = read_run(folder), read_results(folder)
    if unknown := results.tasks.keys() - run.tasks.keys():
        raise UsageError(f"{folder}: results.json has task {min(unknown)}, of which run.json does not know")
    return run, results


def last_records(records: Iterable[Record]) -> dict[int, Record]:
    """Return the record that counts of each item: the last one; of several answers the first's."""
    return {record.id: record for record in records if record.repeat == 0}


def current_records(
    folder: Path, task: str, planned: TaskRecord, *, any_version: bool = False
) -> list[Record]:
    """Return the records of ``task`` by ascending item id; ``planned`` is its entry in ``run.json``.

    A folder may hold more (another limit, earlier task versions): the last record of an item counts, and
    only items within the limit. Several answers to an item become one record with their means. Those of a
    packed run have scores alone. UsageError if there are no records, if items are missing, or, unless
    ``any_version``, if one was scored under another version of the task.
    """
    file = samples_file(folder, task)
    if file.is_file():
        wanted = wanted_items(file, planned)
        answers = last_answers(file, wanted, planned.repeats)
        records = [merged(answers[item]) for item in wanted]
    elif not scores_file(folder).is_file():
        raise UsageError(f"{file}: no such file; per-item records are needed (they were not kept?)")
    else:
        file = scores_file(folder)
        records = packed_records(folder, task, wanted_items(file, planned, least=5))
    stale = next((r.id for r in records if r.task != planned.hash), None)
    if stale is not None and not any_version:
        raise UsageError(
            f"{file}: item {stale} was scored under another version of {task}; cme-bench rescore mends that"
        )
    return records


def wanted_items(file: Path, planned: TaskRecord, *, least: int = 100) -> list[int]:
    """Return the ids of the items that a task has in ``run.json``, ascending.

    ``least``: bytes that an item takes in ``file``. UsageError if the file is too small for so many: a
    damaged number must not become work without end.
    """
    n = planned.rows if planned.limit is None else min(planned.limit, planned.rows)
    held = file.stat().st_size // least if file.is_file() else 0
    if held < n:
        raise UsageError(
            f"{file}: at least {n - held} of {n} items are missing; the same run command adds them"
        )
    return limited_ids(range(planned.rows), planned.limit)


def last_answers(file: Path, wanted: Sequence[int], repeats: int) -> dict[int, list[Record]]:
    """Return the records that count of each item that is wanted, one for each of its answers in order.

    UsageError if there are items without.
    """
    last = {(r.id, r.repeat): r for r in read_records(file) if r.repeat < repeats}
    missing = [item for item in wanted if any((item, repeat) not in last for repeat in range(repeats))]
    if missing:
        raise UsageError(
            f"{file}: {len(missing)} of {len(wanted)} items are missing (first: {missing[0]}); "
            "the same run command adds them"
        )
    return {item: [last[item, repeat] for repeat in range(repeats)] for item in wanted}


def overlaid(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return ``new`` in the order of ``old``, with what only ``old`` has: other versions may have written it.

    A key that ``old`` lacks is added only if it has a value.
    """
    both = dict(old)
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            both[key] = overlaid(before, value)
        elif key in old or value not in (None, [], {}):
            both[key] = value
    return both
