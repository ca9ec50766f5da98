"""Doing the jobs of a recipe: one process, or several that share the cards, until all are done or time is up.

Processes agree through files alone: each takes the first job that is ready and that nobody has locked, or
the first trainings, as many as the recipe trains together. A killed process leaves a training at its last
checkpoint, an evaluation at its last item.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cme_bench.experiments.reproduce.bundles import bundles
from cme_bench.experiments.reproduce.jobs import Folder, Job, all_jobs, pending
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.util.errors import CmeError, InterruptedRun

WAIT_SECONDS = 0.5
MARGIN_SECONDS = 20.0
"""Left before the end of the time for what a stopping job still has to write."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
Do = Callable[[Sequence[Job]], Sequence[Mapping[str, object]]]
"""Does jobs, several at once only if they are trainings of one kind; returns what their markers record."""


@dataclass(frozen=True, slots=True)
class Clock:
    """``end``: of the time, in ``time.monotonic`` seconds; None for as long as it takes."""

    end: float | None

    @classmethod
    def of_minutes(cls, minutes: float | None) -> Clock:
        return cls(None if minutes is None else time.monotonic() + 60 * minutes - MARGIN_SECONDS)

    def arguments(self) -> list[str]:
        """Return the option that gives another process the same end."""
        return [] if self.end is None else ["--minutes", f"{max(1.0, (self.left + MARGIN_SECONDS) / 60):.2f}"]

    @property
    def left(self) -> float:
        """Seconds that are left; infinite without an end."""
        return float("inf") if self.end is None else self.end - time.monotonic()


@contextmanager
def interrupted_at(clock: Clock) -> Iterator[None]:
    """End the block with InterruptedRun on SIGTERM and SIGINT, and send SIGTERM when the time is up. A
    training or a run saves itself first, by its own handler.

    In the block the signal is a KeyboardInterrupt: a library that turns every ``Exception`` into a message,
    as torch does where it copies tensors, lets it pass.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    alarm = threading.Timer(max(clock.left, 0), os.kill, (os.getpid(), signal.SIGTERM))
    alarm.daemon = True
    if clock.end is not None:
        alarm.start()
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRun("stopped") from None
    finally:
        alarm.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def work(
    recipe: Recipe,
    folder: Folder,
    do: Do,
    note: Callable[[str], None],
    *,
    alone: bool,
    clock: Clock,
    begun: int = 0,
    idle: Callable[[Sequence[Job]], bool] = lambda _: False,
) -> int:
    """Do jobs until none is left for this process; ``alone``: also those that need the machine alone.

    ``begun``: how often the call has done some before; the new number is returned. ``idle``: is called with
    the jobs that wait for others, where nothing can be done; returns whether it did something for them.

    Raises what a job raises, the jobs before it are done; and InterruptedRun if the next job would be lost
    for lack of time, unless it is the first of the call.
    """
    jobs = all_jobs(recipe)
    while True:
        left = [job for job in pending(jobs, folder) if alone or not job.alone]
        if not left:
            return begun
        ready = [job for job in left if all(map(folder.is_done, job.needs))]
        shared = [job for job in ready if not job.alone]
        ready = shared or ([] if _others(left) else ready)
        if begun and ready and clock.left < 60 * (ready[0].minutes or 0):
            raise InterruptedRun(f"{ready[0].name} would not be done in time")
        if any(_take(folder, jobs, do, note) for jobs in bundles(ready, recipe)):
            begun += 1
        elif not idle([job for job in left if job not in ready]):
            time.sleep(WAIT_SECONDS)


def _others(left: Sequence[Job]) -> bool:
    """Return whether jobs that share the machine are still to be done."""
    return any(not job.alone for job in left)


def _take(folder: Folder, jobs: Sequence[Job], do: Do, note: Callable[[str], None]) -> bool:
    """Do those of the jobs that no other process has; return whether there was any."""
    with ExitStack() as stack:
        mine = [job for job in jobs if stack.enter_context(folder.claimed(job.name))]
        mine = [job for job in mine if not folder.is_done(job.name)]
        if not mine:
            return False
        for job in mine:
            note(f"{job.name}: begins")
        started = time.monotonic()
        outcomes = do(mine)
        seconds = round((time.monotonic() - started) / len(mine), 3)
        for job, outcome in zip(mine, outcomes, strict=True):
            folder.finish(job.name, {"job": job.name, "seconds": seconds, **outcome})
            note(f"{job.name}: done in {seconds:.0f} s" + (" of its own" if len(mine) > 1 else ""))
        return True


def dealt_cards(count: int) -> list[dict[str, str]]:
    """Return what each of ``count`` helpers has in its environment: one of the GPUs that this process sees,
    the second one first; nothing without GPUs."""
    import torch

    visible = torch.cuda.device_count()
    named = os.environ.get(VISIBLE, "")
    cards = named.split(",")[:visible] if named else [str(card) for card in range(visible)]
    return [{VISIBLE: cards[number % len(cards)]} if cards else {} for number in range(1, count + 1)]


@contextmanager
def helpers(command: Sequence[str], count: int, logs: Path) -> Iterator[None]:
    """Start ``count`` further processes of the same recipe; stop them when the block ends by an error.

    They are dealt over the GPUs that this process sees, the first of which is its own, and share its cores:
    each would otherwise compute with a thread for every core, and wait for the others'. CmeError if one of
    them fails, with the last line that it wrote.
    """
    import torch

    files = [logs / f"worker{number + 1}.log" for number in range(count)]
    threads = torch.get_num_threads()
    share = max(1, threads // (count + 1))
    torch.set_num_threads(share)
    processes = []
    for file, card in zip(files, dealt_cards(count), strict=True):
        with file.open("a") as stream:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "cme_bench", *command],
                    env=os.environ | {"OMP_NUM_THREADS": str(share)} | card,
                    stdout=stream,
                    stderr=stream,
                )
            )
    try:
        yield
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        codes = [process.wait() for process in processes]
        torch.set_num_threads(threads)
    for file, code in zip(files, codes, strict=True):
        if code not in (0, InterruptedRun.exit_code):
            last = file.read_text().strip().splitlines()[-1:]
            raise CmeError(f"a worker failed ({file}): {''.join(last)}")
