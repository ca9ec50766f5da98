"""The sums of optimizer steps on their way to the loss curve and to whoever watches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from cme_bench.runs.progress import Listener
from cme_bench.training.curve import LossCurve, Point
from cme_bench.training.reporting import TrainingReport
from cme_bench.util.errors import CmeError


class StepLog:
    """Keep what steps sum up on the device, and write it a few steps at a time.

    ``report``: of trackers, told of the same points. ``interrupted``: whether a signal asked to stop.
    """

    def __init__(self, curve: LossCurve, listener: Listener, report: TrainingReport | None = None) -> None:
        self.curve, self.listener, self._report = curve, listener, report
        self.interrupted = False
        self._shown = 0
        self._pending: list[tuple[int, float, Tensor]] = []
        self._base_seconds = curve.last.seconds
        self._started = self._flushed = time.monotonic()

    def start(self, step: int, steps: int) -> None:
        """Begin to count time, and to show progress behind ``step``."""
        self._started = self._flushed = time.monotonic()
        self._shown = step
        self.listener.start("training", total=steps, done=step)

    def add(self, step: int, lr: float, sums: Tensor) -> None:
        """Add a step: summed loss, target tokens, tokens, summed balance loss, batches, [5]."""
        self._pending.append((step, lr, sums))

    def flush(self, reduced: Callable[[Tensor], Tensor] = lambda sums: sums) -> None:
        """Write the steps since the last time. ``reduced``: sums over the processes.

        CmeError at the first loss that is not finite; the steps before it are written.
        """
        rows = reduced(torch.stack([sums for _, _, sums in self._pending])).tolist()
        now = time.monotonic()
        seconds = round(self._base_seconds + now - self._started, 3)
        last = self.curve.last
        before = last.tokens
        points: list[Point] = []
        for (step, lr, _), (nll, targets, tokens, balance, batches) in zip(self._pending, rows, strict=True):
            sums = (nll, targets, tokens, balance / max(batches, 1))
            last = last.next(step, sums, lr=lr, seconds=seconds)
            if not math.isfinite(last.loss):
                self.curve.add(points)
                raise CmeError(
                    f"the loss is {last.loss} at step {step}; lower --learning-rate (checkpoints are intact)"
                )
            points.append(last)
        self._pending.clear()
        self.curve.add(points)
        speed = (last.tokens - before) / max(now - self._flushed, 1e-9)
        self._flushed = now
        if self._report is not None:
            self._report.points(points, speed)
        mean = sum(p.loss for p in points) / len(points)
        self.listener.advance(last.step - self._shown, f"loss {mean:.4f}  {speed:,.0f} tokens/s")
        self._shown = last.step
