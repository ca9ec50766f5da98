"""Deal the commands of a file to the GPUs of a host: timed ones alone on a card, others beside each other.

The file is YAML, a list of jobs in the order of their weight::

    - {name: small, command: python benchmarks/hf_adapters.py, seconds: 120}
    - {name: pair, command: python benchmarks/several_gpus.py, gpus: 2, needs: [model.ok]}
    - {name: noise, command: python benchmarks/engine_noise.py, beside: 2, after: [train]}
    - {name: hour, command: cme-bench reproduce smollm2 --scale hour --out hour, fills: true, gpu: 0}

``seconds``: after which a job is stopped. ``gpus``: how many cards it gets, as CUDA_VISIBLE_DEVICES; ``gpu``:
which one. ``beside``: so many jobs of this kind may share a card; without it a job is timed, and alone.
``fills``: it is stopped (SIGSTOP) for as long as a timed job has its card. ``needs``: files that must be
there; ``after``: jobs that must have ended. A job is a shell command; its output is OUT/NAME.log. When jobs
began and ended is in OUT/jobs.log.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

WAIT_SECONDS = 0.5
GRACE_SECONDS = 5.0
"""Between the request to stop and the end by force."""


@dataclass(frozen=True, slots=True)
class Job:
    """One command; fields as the file has them."""

    name: str
    command: str
    seconds: float = 3600.0
    gpus: int = 1
    gpu: int | None = None
    beside: int = 0
    fills: bool = False
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def is_timed(self) -> bool:
        return not (self.beside or self.fills)


@dataclass(slots=True)
class Running:
    """A started job: its process group, its cards, and whether it is stopped for another."""

    job: Job
    process: subprocess.Popen[bytes]
    cards: Sequence[int]
    began: float = field(default_factory=time.monotonic)
    stopped: bool = False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the job."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)


class Host:
    """The cards of a host and what runs on them."""

    def __init__(self, cards: int, out: Path, note: Callable[[str], None]) -> None:
        self.cards, self.out, self.note = range(cards), out, note
        self.running: list[Running] = []
        self.ended: dict[str, int | None] = {}

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs; return when the last has ended."""
        waiting = list(jobs)
        while waiting or self.running:
            self._end()
            blocked = False
            for job in [job for job in waiting if self._may_begin(job)]:
                cards = self._free(job)
                if len(cards) >= job.gpus and (job.fills or not blocked):
                    waiting.remove(job)
                    self._begin(job, cards[: job.gpus])
                elif job.gpus > 1:
                    blocked = True  # the cards are kept free for it
            time.sleep(WAIT_SECONDS)

    def _may_begin(self, job: Job) -> bool:
        return all(Path(file).exists() for file in job.needs) and all(
            name in self.ended for name in job.after
        )

    def _on(self, card: int) -> list[Running]:
        return [one for one in self.running if card in one.cards]

    def _free(self, job: Job) -> list[int]:
        """Return the cards that may take the job now."""
        wanted = self.cards if job.gpu is None else [job.gpu]
        if job.fills:
            return [card for card in wanted if not any(one.job.is_timed for one in self._on(card))]
        others = {card: [one.job for one in self._on(card) if not one.job.fills] for card in wanted}
        if job.is_timed:
            return [card for card, found in others.items() if not found]
        return [
            card
            for card, found in others.items()
            if len(found) < job.beside and not any(one.is_timed for one in found)
        ]

    def _begin(self, job: Job, cards: Sequence[int]) -> None:
        if job.is_timed:
            for one in {id(one): one for card in cards for one in self._on(card)}.values():
                one.signal(signal.SIGSTOP)
                one.stopped = True
        with (self.out / f"{job.name}.log").open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", job.command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, cards))},
                start_new_session=True,
            )
        self.running.append(Running(job, process, cards))
        self.note(f"{job.name} begins on {', '.join(map(str, cards))}")

    def _end(self) -> None:
        """Note the jobs that have ended, end those whose time is over, let fills go on where they may."""
        for one in list(self.running):
            if time.monotonic() - one.began > one.job.seconds:
                one.signal(signal.SIGCONT)
                one.signal(signal.SIGTERM)
                try:
                    one.process.wait(GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    one.signal(signal.SIGKILL)
                    one.process.wait()
            if one.process.poll() is not None:
                self.running.remove(one)
                self.ended[one.job.name] = one.process.returncode
                seconds = time.monotonic() - one.began
                self.note(f"{one.job.name} ended with {one.process.returncode} after {seconds:.1f} s")
        for one in self.running:
            timed = any(
                other.job.is_timed for card in one.cards for other in self._on(card) if other is not one
            )
            if one.stopped and not timed:
                one.signal(signal.SIGCONT)
                one.stopped = False


def read_jobs(file: Path) -> list[Job]:
    """Return the jobs of a file."""
    jobs: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [
        Job(**dict[str, Any]((name, tuple(v) if isinstance(v, list) else v) for name, v in job.items()))
        for job in jobs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("jobs", type=Path)
    parser.add_argument("--gpus", type=int, help="of the host; default: all")
    parser.add_argument("--out", type=Path, default=Path("build/on_gpus"), help="folder of the logs")
    args = parser.parse_args()
    if args.gpus is None:
        import torch

        args.gpus = max(1, torch.cuda.device_count())
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (args.out / "jobs.log").open("a", buffering=1) as log:

        def note(line: str) -> None:
            print(f"{time.monotonic() - began:7.1f} s  {line}", file=log)

        Host(args.gpus, args.out, note).run(read_jobs(args.jobs))


if __name__ == "__main__":
    main()
