"""What the harness costs beside the model, and how fast a million stored records become a table.

``million_records_s``: from a samples file of 1,000,000 records, as ``cme-bench run`` stores them, to
results.json, summary.csv and the printed comparison table; ``memory_growth_mib`` is by how much the process
grows meanwhile, ``memory_growth_tenth_mib`` the same for a tenth of the records. ``overhead_percent``: wall
time of ``cme-bench run`` on a likelihood task of 2,000 items less the engine's model time, as a share of the
wall time; loading the model is part of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measurements
from msgspec.structs import replace

from cme_bench.harness.task_result import task_result
from cme_bench.reports.runs import open_run
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import render
from cme_bench.runs.folder import read_run
from cme_bench.runs.records import SessionRecord
from cme_bench.runs.results import write_results
from cme_bench.runs.store import read_records, record_bytes, samples_file
from cme_bench.tasks.suite import load_suite
from cme_bench.util import memory as resident_memory

TASK = "cme_arc_easy_ll"


def run(model: str, task: str, data: str, out: Path, *arguments: str) -> SessionRecord:
    """``cme-bench run`` in a process of its own; the session's entry in run.json."""
    command = [sys.executable, "-m", "cme_bench", "run", model, "--tasks", task, "--data", data]
    command += ["--out", str(out), "--offline", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=measurements.ROOT)
    return read_run(out).sessions[-1]


def repeated(file: Path, count: int) -> Iterator[bytes]:
    """``count`` lines: the records of ``file`` over and over, each with an id of its own."""
    records = list(read_records(file))
    for id_, record in zip(range(count), itertools.cycle(records)):
        yield record_bytes(replace(record, id=id_)) + b"\n"


def summarise(folder: Path) -> float:
    """Seconds from the stored records to the printed table."""
    [spec] = load_suite().select(TASK)
    started = time.perf_counter()
    result = task_result(spec, None, read_records(samples_file(folder, TASK)))
    write_results(folder, read_run(folder), [result])
    render(comparison_tables([open_run(folder)]), "md")
    return time.perf_counter() - started


def time_records(folder: Path, count: int) -> dict[str, float]:
    """Seconds, how much memory grew in MiB, and the size of a record in bytes."""
    file = samples_file(folder, TASK)
    whole = folder / "whole.jsonl"
    with whole.open("wb") as stream:
        stream.writelines(repeated(file, count))
    shutil.move(file, folder / "few.jsonl")
    shutil.move(whole, file)
    size = file.stat().st_size / count
    resident_memory.reset_peak()
    before = resident_memory.peak()
    seconds = summarise(folder)
    grown = resident_memory.peak() - before
    shutil.move(folder / "few.jsonl", file)
    return {"seconds": seconds, "grown_mib": grown / 2**20, "record_bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default=str(measurements.DATA))
    parser.add_argument("--quick", action="store_true", help="50,000 records (scaled up), no long run")
    args = parser.parse_args()
    count = 50_000 if args.quick else args.records
    with tempfile.TemporaryDirectory() as scratch:
        few = Path(scratch) / "few"
        run(args.model, TASK, "mini", few)
        tenth = time_records(few, count // 10)
        found = time_records(few, count)
        metrics = {
            "million_records_s": round(found["seconds"] * 1e6 / count, 3),
            "memory_growth_mib": round(found["grown_mib"], 1),
            "memory_growth_tenth_mib": round(tenth["grown_mib"], 1),
        }
        settings: dict[str, Any] = {"records": count, "record_bytes": round(found["record_bytes"])}
        if not args.quick:
            started = time.perf_counter()
            limit = ["--limit", str(args.items)]
            session = run(args.model, "cme_hellaswag_ll", args.data, Path(scratch) / "long", *limit)
            assert session.engine is not None
            model_s, wall_s = session.engine.model_seconds, session.seconds
            metrics["overhead_percent"] = round(100 * (1 - model_s / wall_s), 2)
            settings |= {"items": args.items, "model": args.model, "wall_s": wall_s, "model_s": model_s}
            settings["process_s"] = time.perf_counter() - started
    line = measurements.line("store", metrics)
    if not args.quick:
        measurements.save(line, settings=settings)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
