"""A training in trackers: loss, rate, tokens, speed, memory and router balance of every step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cme_bench.trackers import Entry, Trackers, open_trackers
from cme_bench.trackers.entry import entry_id, flat
from cme_bench.training.curve import LossCurve, Point
from cme_bench.training.options import TrainOptions
from cme_bench.util import memory
from cme_bench.util.notes import Note

GIB = 2**30


class TrainingReport:
    """The entries of one training, told of its points as they are written; of none without ``report_to``."""

    def __init__(
        self, options: TrainOptions, content: Mapping[str, Any], *, last_step: int, balanced: bool, note: Note
    ) -> None:
        """Open them. Raises UsageError for a tracker that cannot begin.

        ``content``: the record of the training; ``balanced``: whether it has a load-balance loss.
        """
        self._balanced = balanced
        self._trackers: Trackers | None = None
        if options.report_to:
            config = flat(content["arguments"]) | flat({"adapter": content["adapter"]})
            entry = Entry(
                options.report_project,
                entry_id(options.out),
                options.out,
                config,
                offline=options.offline,
                last_step=last_step,
            )
            self._trackers = open_trackers(options.report_to, entry, note)

    def points(self, points: Sequence[Point], speed: float) -> None:
        """Tell of steps; ``speed``: their tokens a second, over all processes."""
        if self._trackers is None:
            return
        held = _memory() / GIB
        for point in points:
            values = {
                "train/loss": point.loss,
                "train/learning_rate": point.lr,
                "train/tokens": float(point.tokens),
                "train/tokens_per_second": speed,
                "train/memory_gib": held,
            }
            if self._balanced:
                values["router/balance_loss"] = point.balance_loss
            self._trackers.log(values, point.step)

    def close(self) -> None:
        """Finish the entries."""
        if self._trackers is not None:
            self._trackers.close()


def report_whole(options: TrainOptions, content: Mapping[str, Any], curve: LossCurve, note: Note) -> None:
    """Tell trackers of a training that is over, as one of a sweep, from its curve."""
    balanced = any(point.balance_loss for point in curve.points)
    report = TrainingReport(options, content, last_step=0, balanced=balanced, note=note)
    tokens, seconds = 0, 0.0
    for until, group in itertools.groupby(curve.points, key=lambda point: point.seconds):
        points = list(group)
        report.points(points, (points[-1].tokens - tokens) / max(until - seconds, 1e-9))
        tokens, seconds = points[-1].tokens, until
    report.close()


def _memory() -> int:
    """Return the most bytes that were held: of all GPUs where there are any, else of this process."""
    if not torch.cuda.is_available():
        return memory.peak()
    return sum(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))
