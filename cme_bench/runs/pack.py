"""``python -m cme_bench.runs.pack RUN TO``: a run folder as it is committed, without texts.

Kept are ``run.json``, ``results.json`` without lm-eval's task configurations, and ``scores.json`` (see
:mod:`cme_bench.runs.packed`). ``table``, ``compare`` and ``load_runs`` read such a folder as any other. A run
whose records were not kept is packed without ``scores.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from cme_bench.runs.folder import current_records, is_run, read_both, read_run, run_file
from cme_bench.runs.packed import PackedScores, packed_task, scores_file
from cme_bench.runs.records import RunRecord
from cme_bench.runs.store import samples_file
from cme_bench.util.decode import json_value
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json, write_bytes

PACKED_FILES = ("run.json", "results.json", "scores.json")
"""All that is in a packed folder."""


def pack_run(folder: Path, out: Path) -> None:
    """Write the packed form of a run folder to ``out``, another folder.

    UsageError if ``folder`` is no run, is unfinished or half kept, or if ``out`` holds another run.
    """
    run, results = read_both(folder)
    if not run.finished:
        raise UsageError(f"{folder}: the run is not finished")
    _check_out(folder, out, run)
    kept = [task for task in results.tasks if samples_file(folder, task).is_file()]
    if kept and len(kept) < len(results.tasks):
        lost = min(results.tasks.keys() - set(kept))
        raise UsageError(f"{samples_file(folder, lost)}: no such file, but other tasks' records are there")
    tasks = {
        task: packed_task(current_records(folder, task, run.tasks[task]), run.tasks[task].hash)
        for task in kept
    }
    whole = read_json(folder / "results.json")
    whole.pop("configs", None)
    out.mkdir(parents=True, exist_ok=True)
    _write(run_file(out), read_json(run_file(folder)))
    _write(out / "results.json", whole)
    if tasks:
        _write(scores_file(out), json_value(PackedScores(tasks=tasks)))
    elif scores_file(folder).is_file():  # packed before
        write_bytes(scores_file(out), scores_file(folder).read_bytes())


def _check_out(folder: Path, out: Path, run: RunRecord) -> None:
    if out.resolve() == folder.resolve():
        raise UsageError(f"{out}: a run is packed into another folder")
    if out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - set(PACKED_FILES)):
        raise UsageError(f"{out} holds something else; name another folder")
    if is_run(out) and read_run(out).identity != run.identity:
        raise UsageError(f"{out} holds the run of another model; name another folder")


def _write(file: Path, content: dict[str, Any]) -> None:
    write_bytes(file, one_a_line(content) + b"\n")


def one_a_line(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object with a line for each of its keys: small, and a difference shows where it is."""
    lines = (b"%b:%b" % (orjson.dumps(key), orjson.dumps(value)) for key, value in content.items())
    return b"{\n" + b",\n".join(lines) + b"\n}"


def main(arguments: list[str]) -> int:
    """Pack one run; return the exit code."""
    if len(arguments) != 2:
        print("usage: python -m cme_bench.runs.pack RUN TO", file=sys.stderr)
        return 2
    folder, out = map(Path, arguments)
    try:
        pack_run(folder, out)
    except UsageError as error:
        print(f"cme-bench: {error}", file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in out.iterdir())
    scores = "" if scores_file(out).is_file() else "; without scores of items, whose records were not kept"
    print(f"{out}: {size:,} bytes{scores}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
