"""How a report of many items is written and opened: two runs of 100,000 items in 22 tasks, as one HTML file.

``write_s``: reading the run folders, the tests of all pairs and writing the file. ``open_s``: from navigation
to the page's script having run, in headless Chromium, median of rounds, each in a fresh browser; ``task_s``:
from the click on a task of 4,545 items to its first item in full. Prompts are 600 characters of made-up
words.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import measurements
import orjson
from playwright.sync_api import sync_playwright

from cme_bench.reports.page.render import render_page
from cme_bench.reports.runs import open_run
from cme_bench.runs.folder import read_run
from cme_bench.runs.results import write_results
from cme_bench.scoring.aggregate import TaskResult
from cme_bench.stats.estimates import mean
from cme_bench.util import provenance
from cme_bench.util.files import write_json

TASKS = 22


def make_run(folder: Path, per_task: int, seed: int) -> None:
    """A run folder with ``per_task`` items in each of 22 tasks; prompts are the same for every seed."""
    words = random.Random(0)
    vocabulary = [
        "".join(words.choices("abcdefghijklmnopqrstuvwxyz", k=words.randint(2, 9))) for _ in range(20_000)
    ]
    rng = random.Random(seed)
    (folder / "samples").mkdir(parents=True)
    planned: dict[str, Any] = {}
    results = []
    for number in range(TASKS):
        name, domain = f"task_{number:02}", f"domain_{number // 2:02}"
        scores = []
        with (folder / "samples" / f"{name}.jsonl").open("wb") as stream:
            for i in range(per_task):
                score = float(rng.random() < 0.5)
                scores.append(score)
                record = {
                    "id": i,
                    "key": f"{i:064x}",
                    "task": "0" * 64,
                    "scores": {"acc": score},
                    "answer": {"text": rng.choice("ABCD"), "rule": "letter"},
                    "response": {
                        "text": " ".join(rng.choices(vocabulary, k=20)),
                        "n_tokens": 30,
                        "finish": "stop",
                    },
                    "target": "A",
                    "truncated": 0,
                    "prompt": " ".join(words.choices(vocabulary, k=95)),
                    "choices": [],
                    "doc": {"id": i},
                }
                stream.write(orjson.dumps(record) + b"\n")
        planned[name] = {
            "domain": domain,
            "dataset": name,
            "primary": "acc",
            "output_type": "generate_until",
            "hash": "0" * 64,
            "n": per_task,
            "rows": per_task,
            "limit": None,
            "shots": 0,
            "prompt_format": "plain",
            "policy": "joint",
        }
        quality = {"truncated": 0.0, "empty": 0.0}
        results.append(TaskResult(name, "generated", domain, name, "acc", {"acc": mean(scores)}, quality))
    content = {
        "identity": {
            "model": "a" * 64,
            "adapter": "none",
            "dtype": "float32",
            "engine": "hf",
            "data": "made",
        },
        "model": {"name": f"model_{seed}", "path": "/made", "parameters": 1},
        "versions": {},
        "tasks": planned,
        "finished": True,
    }
    write_json(folder / "run.json", content)
    write_results(folder, read_run(folder), results)


def open_page(file: Path, chromium: str) -> dict[str, float]:
    """Seconds to open the page, and then a task."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        started = time.perf_counter()
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready=true]")
        opened = time.perf_counter()
        page.click("button.open[data-task=task_10]")
        page.wait_for_selector("#detail pre")
        done = time.perf_counter()
        browser.close()
    return {"open_s": opened - started, "task_s": done - opened}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="5,000 items, one round")
    args = parser.parse_args()
    if args.quick:
        args.items, args.rounds = 5000, 1
    chromium = shutil.which("chromium")
    if chromium is None:
        print("report_page: skipped, it needs Chromium (Debian: chromium)")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / f"run_{seed}" for seed in (1, 2)]
        for seed, folder in enumerate(folders, start=1):
            make_run(folder, args.items // TASKS, seed)
        started = time.perf_counter()
        file = Path(scratch) / "report.html"
        file.write_text(render_page([open_run(folder) for folder in folders]), encoding="utf-8")
        write_s = time.perf_counter() - started
        rounds = [open_page(file, chromium) for _ in range(args.rounds)]
        size = file.stat().st_size / 2**20
    metrics = {
        "write_s": write_s,
        "file_mib": size,
        **{name: statistics.median(r[name] for r in rounds) for name in rounds[0]},
    }
    rounded = {name: round(value, 3) for name, value in metrics.items()}
    line = measurements.line("report_page", rounded, hardware=provenance.processor())
    settings = {"items": args.items, "runs": 2, "cores": os.cpu_count()}
    if not args.quick:
        measurements.save(line, settings=settings, rounds=rounds)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
