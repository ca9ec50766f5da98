"""The loss curves of a sweep, and its progress."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import takewhile

from torch import Tensor

from cme_bench.runs.progress import Listener
from cme_bench.training.curve import LossCurve
from cme_bench.training.prepared import Prepared
from cme_bench.training.sweep.crew import rate
from cme_bench.util.devices import Fetched


class Ledger:
    """Keep what the steps sum up, until it is written; ``interrupted``: whether a signal has come.

    ``steps``: of every training.
    """

    def __init__(self, listener: Listener, steps: Sequence[int]) -> None:
        self.listener, self.interrupted = listener, False
        self._total = sum(steps)
        self._members: list[Prepared] = []
        self._curves: dict[str, LossCurve] = {}
        self._pending: list[tuple[int, Fetched]] = []
        self._diverged: set[str] = set()
        self._at = time.monotonic()

    def start(self, done: int) -> None:
        """Begin to show progress, with ``done`` steps of all adapters together made before."""
        self.listener.start("training", total=self._total, done=done)
        self._at = time.monotonic()

    def open(self, members: Sequence[Prepared], step: int) -> None:
        """Write for these members from ``step`` on."""
        self._members, self._pending, self._diverged = list(members), [], set()
        for member in members:
            if member.name not in self._curves:
                self._curves[member.name] = LossCurve(member.options.out / "loss.csv", last_step=step)

    def curve(self, name: str) -> LossCurve:
        """Return the loss curve of an adapter."""
        return self._curves[name]

    def add(self, step: int, sums: Tensor) -> None:
        """Add a step's sums, [members, 4]: loss, target tokens, tokens, balance loss."""
        self._pending.append((step, Fetched(sums)))

    def flush(self, *, wait: bool = True) -> list[str]:
        """Write the curves; return the names of those whose loss is not finite any more.

        ``wait``: for the steps that a GPU is still to make; without, they are left for the next time.
        """
        ready = list(takewhile(lambda each: wait or each[1].arrived(), self._pending))
        if not ready:
            return []
        now = time.monotonic()
        rows = [sums.numbers().tolist() for _, sums in ready]
        diverged, tokens, losses = [], 0, []
        for number, member in enumerate(self._members):
            if member.name in self._diverged:
                continue
            curve = self._curves[member.name]
            last, points = curve.last, []
            seconds = round(last.seconds + now - self._at, 3)
            for (step, _), row in zip(ready, rows, strict=True):
                before = last.tokens
                last = last.next(step, row[number], lr=rate(member, step - 1), seconds=seconds)
                if not math.isfinite(last.loss):
                    self.listener.note(
                        f"{member.name}: the loss is {last.loss} at step {step}; the others go on"
                    )
                    diverged.append(member.name)
                    break
                points.append(last)
                tokens += last.tokens - before
                losses.append(last.loss)
            curve.add(points)
        speed = tokens / max(now - self._at, 1e-9)
        mean = sum(losses) / max(len(losses), 1)
        self.listener.advance(len(ready) * len(self._members), f"loss {mean:.4f}  {speed:,.0f} tokens/s")
        self._pending, self._at = self._pending[len(ready) :], now
        self._diverged |= set(diverged)
        return diverged
