"""The records that count of a run: one for each item that ``run.json`` speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cme_bench.errors import UsageError
from cme_bench.prompts.items import limited_ids
from cme_bench.runs.store import Record, read_records, samples_file


def current_records(
    folder: Path, task: str, planned: Mapping[str, Any], *, any_version: bool = False
) -> list[Record]:
    """Records of ``task`` by ascending item id; ``planned`` is its entry in ``run.json``.

    A folder may hold more (another limit, earlier task versions): the last record of an item counts, and
    only items within the limit. UsageError if there are no records, if items are missing, or, unless
    ``any_version``, if one was scored under another version of the task.
    """
    file = samples_file(folder, task)
    if not file.is_file():
        raise UsageError(f"{file}: no such file; per-item records are needed (they were not kept?)")
    last = {record["id"]: record for record in read_records(file)}
    wanted = limited_ids(range(planned["rows"]), planned["limit"])
    missing = [item for item in wanted if item not in last]
    if missing:
        raise UsageError(
            f"{file}: {len(missing)} of {len(wanted)} items are missing (first: {missing[0]}); "
            "the same run command adds them"
        )
    records = [last[item] for item in wanted]
    stale = next((r["id"] for r in records if r["task"] != planned["hash"]), None)
    if stale is not None and not any_version:
        raise UsageError(
            f"{file}: item {stale} was scored under another version of {task}; cme-bench rescore mends that"
        )
    return records
