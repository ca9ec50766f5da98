"""kill -9 at random moments: the same command ends with what an uninterrupted run ends with."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import orjson
import pytest

from cme_bench.models.checkpoint import resolve_model
from cme_bench.runs.options import RunOptions
from cme_bench.runs.progress import Listener
from cme_bench.runs.runner import run
from cme_bench.runs.session import WINDOW_ITEMS
from cme_bench.runs.store import read_records, samples_file

TASKS = (
    "cme_arc_easy_ll",
    "cme_boolq",
    "cme_emotion",
    "cme_hellaswag_ll",
    "cme_rte_ll",
    "cme_sst2_ll",
    "cme_squad",
)
KILLS = 5  # a task's answers can be stored all at once, so there are more tasks than kills

# A server that has imported everything once forks each run: a real process to kill, without 10 s of imports.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["cme_bench.runs.runner", "cme_bench.engines.hf.engine", "transformers"])


class Resumed(Listener):
    """Writes down how many items of each task were found in the store."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def start(self, task: str, *, total: int, done: int) -> None:
        with self.file.open("a") as stream:
            stream.write(f"{task} {done}\n")


def evaluate(out: Path, log: Path) -> None:
    run(RunOptions(model="smollm2", tasks=",".join(TASKS), data="mini", out=out, offline=True), Resumed(log))


def start(out: Path, log: Path) -> BaseProcess:
    process = processes.Process(target=evaluate, args=(out, log))
    process.start()
    return process


def finish(out: Path, log: Path) -> None:
    process = start(out, log)
    process.join()
    assert process.exitcode == 0


def stored(out: Path) -> dict[str, int]:
    """Complete records of each task's file."""
    return {task: len(list(read_records(samples_file(out, task)))) for task in TASKS}


def results(out: Path) -> Any:
    return orjson.loads((out / "results.json").read_bytes())


@pytest.mark.slow
@pytest.mark.long
def test_five_kills_lose_at_most_a_window_each(tmp_path: Path) -> None:
    resolve_model("smollm2")
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    finish(whole, tmp_path / "whole-log")
    moments = random.Random(0)
    total = sum(stored(whole).values())
    for _ in range(KILLS):
        before = sum(stored(killed).values())
        process = start(killed, log)
        while process.is_alive() and sum(stored(killed).values()) <= before:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.join()
        assert process.exitcode == -9, "killed before it could finish"
        assert sum(stored(killed).values()) >= before, "nothing stored is lost"
    kept = stored(killed)
    log.unlink()
    finish(killed, log)
    for line in log.read_text().splitlines():
        task, done = line.split()
        assert int(done) == kept[task], "every stored item is used again"
    assert results(killed) == results(whole)
    for task in TASKS:
        records = list(read_records(samples_file(killed, task)))
        assert len(records) == len({r.id for r in records}), "no stored item was computed twice"
    sessions = orjson.loads((killed / "run.json").read_bytes())["sessions"]
    assert len(sessions) == KILLS + 1
    computed = sum(session["items"] for session in sessions)
    assert total - KILLS * WINDOW_ITEMS <= computed <= total, (
        "run.json counts what was stored, over all resumes"
    )
