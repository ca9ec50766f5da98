"""Many requests, likelihoods and generations mixed, through a toy model that is killed again and again.

One run of ``--items`` items is killed with SIGKILL at random moments and given the same command until it is
done; its memory is read all the time. At the end every item must be there once, and those of a small run that
nothing happened to must have the same answers and scores. ``growth_mib``: by how much the resident set of the
longest session grew from its first stored record to its last, while it stored ``growth_items`` records;
``rss_mib`` is where it stood at most. What stays constant over a run (the model, the planned items) is in
``rss_mib`` only.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import tempfile
import time
from pathlib import Path

import measurements
import toy
from forked import Process, preload
from msgspec.structs import replace

from cme_bench.runs.folder import read_run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.scoring.record import Record, StoredResponse

TOLERANCE = 1e-4
"""Of log-likelihoods in float32, whose last digits depend on what else is in a batch."""


def command(scratch: Path, out: Path, *more: str) -> list[str]:
    tasks = ["--tasks", ",".join(toy.TASKS), "--include", str(scratch / "tasks")]
    return ["run", str(scratch / "model"), *tasks, "--data", "mini", "--offline", "--out", str(out), *more]


def written(out: Path) -> int:
    """Bytes of all records."""
    return sum(file.stat().st_size for file in (out / "samples").glob("*.jsonl"))


def resident(pid: int) -> int:
    """Bytes that a process holds; 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def session(process: Process, out: Path, kill_at: float) -> list[tuple[int, int]]:
    """Watch a run until it ends, or kill it once ``kill_at`` bytes are written; (bytes written, resident)
    every now and then from its first record on."""
    before = written(out)
    seen: list[tuple[int, int]] = []
    while process.running():
        now = written(out)
        if now > before and (held := resident(process.pid)):
            seen.append((now, held))
        if now >= kill_at:
            os.kill(process.pid, 9)
            process.wait()
        time.sleep(0.05)
    return seen


def growth(sessions: list[list[tuple[int, int]]], record_bytes: float) -> dict[str, float]:
    """Of the session that wrote most: how much memory grew from its first tenth to its end."""
    longest = max(sessions, key=lambda seen: seen[-1][0] - seen[0][0] if seen else 0)
    first, last = longest[0][0], longest[-1][0]
    start = max(held for done, held in longest if done <= first + (last - first) / 10)
    return {
        "growth_mib": round((max(held for _, held in longest) - start) / 2**20, 1),
        "growth_items": round(0.9 * (last - first) / record_bytes),
        "rss_mib": round(max(held for seen in sessions for _, held in seen) / 2**20, 1),
    }


def unlike(record: Record, reference: Record) -> bool:
    """Whether two records of an item differ in anything but the last digits of log-likelihoods."""
    same = replace(record, response=reference.response) == reference
    return not same or not _close(record.response, reference.response)


def _close(a: StoredResponse, b: StoredResponse) -> bool:
    if a.text is not None:
        return a == b
    pairs = zip(a.logprobs or (), b.logprobs or (), strict=True)
    return a.greedy == b.greedy and all(math.isclose(x, y, abs_tol=TOLERANCE) for x, y in pairs)


def check(out: Path, small: Path, items: int) -> dict[str, int]:
    """Items lost, stored twice, and unlike those of the small run."""
    lost = duplicated = wrong = compared = 0
    for task in toy.TASKS:
        reference = {record.id: record for record in read_records(samples_file(small, task))}
        seen = bytearray(items // 2)
        for record in read_records(samples_file(out, task)):
            duplicated += seen[record.id]
            seen[record.id] = 1
            if record.id in reference:
                compared += 1
                wrong += unlike(record, reference[record.id])
        lost += seen.count(0)
    return {"lost": lost, "duplicated": duplicated, "wrong": wrong, "compared": compared}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="4,000 items, 2 kills, no results file")
    args = parser.parse_args()
    items, kills = (4000, 2) if args.quick else (args.items, args.kills)
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="cme-bench-soak-") as folder:
        scratch = Path(folder)
        os.environ |= {"HF_HUB_OFFLINE": "1", "CME_BENCH_CACHE": f"{folder}/cache"}
        preload()
        toy.make_tasks(scratch / "tasks", items)
        made = multiprocessing.get_context("fork").Process(target=toy.make_model, args=(scratch / "model",))
        made.start()  # this process must not compute: it is forked
        made.join()

        small, out, log = scratch / "small", scratch / "out", scratch / "stderr"
        limit = min(1000, items // 4)
        if Process(command(scratch, small, "--limit", str(limit)), log).wait():
            raise SystemExit(log.read_text())
        record_bytes = written(small) / (2 * limit)
        moments = sorted(draw.uniform(0, 0.95) * items * record_bytes for _ in range(kills))
        started = time.monotonic()
        sessions = [session(Process(command(scratch, out), log), out, moment) for moment in moments]
        process = Process(command(scratch, out), log)
        sessions.append(session(process, out, math.inf))
        if process.wait():
            raise SystemExit(log.read_text())
        engines = [s.engine for s in read_run(out).sessions if s.engine]
        metrics = {
            **check(out, small, items),
            **growth(sessions, record_bytes),
            "seconds": round(time.monotonic() - started, 1),
            "model_seconds": round(sum(stats.model_seconds for stats in engines)),
        }
    line = measurements.line("soak", metrics)
    if not args.quick:
        measurements.save(line, settings={"items": items, "kills": kills, "seed": args.seed})
    print(json.dumps(line))
    if metrics["lost"] or metrics["duplicated"] or metrics["wrong"]:
        raise SystemExit("something was lost, duplicated or wrong")


if __name__ == "__main__":
    main()
