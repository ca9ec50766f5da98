"""Trainings one after the other, as each process of a launcher makes them: ``train_jobs.py JOBS.json``.

A job: ``options``, those of the training; ``manner``, how it is made; ``stop``, the step behind which every
process is stopped; ``only``, the one process that is asked to stop there, by a signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from cme_bench.runs.progress import Listener
from cme_bench.training.choose import MANNER
from cme_bench.training.options import TrainOptions
from cme_bench.training.ranks import leave
from cme_bench.training.train import train
from cme_bench.util.errors import CmeError


class Watching(Listener):
    """Prints notes, and stops the process or asks it to."""

    def __init__(self, stop: int | None, only: int | None) -> None:
        self._stop, self._only = stop, only

    def note(self, message: str) -> None:
        if os.environ["RANK"] == "0":
            print(message, flush=True)

    def start(self, task: str, *, total: int, done: int) -> None:
        self._done = done

    def advance(self, items: int, detail: str = "") -> None:
        self._done += items
        if self._stop is None or self._done < self._stop:
            return
        self._stop = None
        if self._only is None:
            raise KeyboardInterrupt
        if str(self._only) == os.environ["RANK"]:
            signal.raise_signal(signal.SIGTERM)


def run(job: dict[str, Any]) -> None:
    os.environ[MANNER] = job.get("manner", "")
    options = TrainOptions(**job["options"] | {"out": Path(job["options"]["out"])})
    try:
        train(options, Watching(job.get("stop"), job.get("only")))
    except (KeyboardInterrupt, CmeError) as end:
        if os.environ["RANK"] == "0":
            print(f"{options.out.name}: {end or type(end).__name__}", flush=True)


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        run(each)
    leave()
