"""What the harness costs beside the model, and how fast a million stored records are summarised.

``million_records_s``: one pass over 1,000,000 records of a samples file by the store's own reader, with a
running mean and standard error of every score (not the runner's aggregation, which holds a task's records in
memory); ``memory_growth_mib`` is how much the process grew. ``overhead_percent``: wall time of a run of 2,000
items less the engine's model time, as a share of the wall time, by ``cme-bench run``; loading is part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from cme_bench import provenance
from cme_bench.runs.store import read_records

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "bench"


def write_records(file: Path, count: int) -> None:
    """Records like a choice task's."""
    with file.open("wb") as stream:
        for i in range(count):
            record = {
                "id": i,
                "key": f"{i:064x}",
                "task": "0" * 64,
                "scores": {"acc": float(i % 3 == 0), "acc_norm": float(i % 4 == 0)},
                "margin": (i % 100) / 10,
                "response": {"logprobs": [-1.5, -2.5, -3.5, -4.5], "greedy": [False] * 4},
                "target": "A",
                "truncated": 0,
                "prompt": "Which of these is the right answer to the question? " * 4,
                "choices": ["A", "B", "C", "D"],
                "doc": {"question": "which?", "label": i % 4},
            }
            stream.write(orjson.dumps(record) + b"\n")


def summarise(file: Path) -> dict[str, Any]:
    """Mean and standard error of every score, from one pass over the file."""
    count, sums = 0, {}
    for record in read_records(file):
        count += 1
        for name, value in record["scores"].items():
            total, squares = sums.get(name, (0.0, 0.0))
            sums[name] = total + value, squares + value * value
    return {
        name: {
            "mean": total / count,
            "stderr": ((squares / count - (total / count) ** 2) / (count - 1)) ** 0.5,
        }
        for name, (total, squares) in sums.items()
    }


def time_records(count: int) -> tuple[float, float]:
    """Seconds, and how much memory grew in MiB."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "task.jsonl"
        write_records(file, count)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        summarise(file)
        seconds = time.perf_counter() - started
        return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def overhead(model: str, data: str, limit: int) -> dict[str, float]:
    """Wall and model seconds of one run; the wall time holds prompts, tokens, loading and storing."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        command = [sys.executable, "-m", "cme_bench", "run", model, "--tasks", "cme_hellaswag_ll"]
        command += ["--data", data, "--limit", str(limit), "--out", str(folder), "--offline"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        session = json.loads((folder / "run.json").read_text())["sessions"][-1]
    return {"wall_s": session["seconds"], "model_s": session["engine"]["model_seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--quick", action="store_true", help="50,000 records (scaled up), no run")
    args = parser.parse_args()
    count = 50_000 if args.quick else args.records
    seconds, grown = time_records(count)
    metrics = {"million_records_s": round(seconds * 1e6 / count, 3), "memory_growth_mib": round(grown, 1)}
    settings: dict[str, Any] = {"records": count, "load": os.getloadavg()[0]}
    if not args.quick:
        found = overhead(args.model, args.data, args.items)
        metrics["overhead_percent"] = round(100 * (1 - found["model_s"] / found["wall_s"]), 2)
        settings |= found | {"items": args.items, "model": args.model}
    line = {
        "bench": "store",
        "hardware": provenance.processor(),
        "commit": provenance.commit() or "unknown",
        "metrics": metrics,
    }
    if not args.quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
        name = provenance.processor().lower().replace(" ", "-")
        text = json.dumps(line | {"settings": settings}, indent=1)
        (RESULTS / f"store-{name}.json").write_text(text + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
