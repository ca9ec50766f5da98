"""kill -9 at random moments: the same command ends with what an uninterrupted run ends with."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from cme_bench.models.checkpoint import resolve_model
from cme_bench.runs.runner import WINDOW_ITEMS
from cme_bench.runs.store import read_records, samples_file

TASKS = ("cme_arc_easy_ll", "cme_boolq", "cme_emotion", "cme_hellaswag_ll", "cme_squad")
KILLS = 5


def start(out: Path, log: Path) -> subprocess.Popen[bytes]:
    code = "from cme_bench.cli import main; main()"
    arguments = [
        "run",
        "smollm2",
        "--tasks",
        ",".join(TASKS),
        "--data",
        "mini",
        "--offline",
        "--out",
        str(out),
    ]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=log.open("wb"), stdout=subprocess.DEVNULL
    )


def stored(out: Path) -> dict[str, int]:
    """Complete records of each task's file."""
    return {task: len(list(read_records(samples_file(out, task)))) for task in TASKS}


def results(out: Path) -> Any:
    return orjson.loads((out / "results.json").read_bytes())


@pytest.mark.slow
def test_five_kills_lose_at_most_a_window_each(tmp_path: Path) -> None:
    resolve_model("smollm2")
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    assert start(whole, log).wait() == 0, log.read_text()
    moments = random.Random(0)
    total = sum(stored(whole).values())
    for _ in range(KILLS):
        before = sum(stored(killed).values())
        process = start(killed, log)
        while process.poll() is None and sum(stored(killed).values()) <= before:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        after = stored(killed)
        assert sum(after.values()) >= before, "nothing stored is lost"
    assert sum(stored(killed).values()) < total, "the last kill must come before the end"
    kept = stored(killed)
    assert start(killed, log).wait() == 0, log.read_text()
    for task, done in re.findall(r"(\w+): resumed (\d+)/", log.read_text()):
        assert int(done) == kept[task], "every stored item is used again"
    assert results(killed) == results(whole)
    for task in TASKS:
        records = list(read_records(samples_file(killed, task)))
        assert len(records) == len({r["id"] for r in records}), "no stored item was computed twice"
    sessions = orjson.loads((killed / "run.json").read_bytes())["sessions"]
    assert len(sessions) == KILLS + 1
    computed = sum(session["items"] for session in sessions)
    assert total - KILLS * WINDOW_ITEMS <= computed <= total, (
        "run.json counts what was stored, over all resumes"
    )
