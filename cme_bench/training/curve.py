"""``loss.csv``: one row a step; also where a resumed training finds the tokens and seconds spent so far."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from cme_bench.util.errors import CmeError


@dataclass(frozen=True, slots=True)
class Point:
    """One optimizer step, over all processes.

    ``tokens``, ``target_tokens``, ``seconds``: totals so far (padding not counted; the time of all sessions).
    ``loss``: mean negative log-likelihood of the step's target tokens, in nats. ``lr``: what the step used.
    ``balance_loss``: the load-balance term, coefficient included; 0 without one.
    """

    step: int
    tokens: int
    target_tokens: int
    loss: float
    lr: float
    balance_loss: float
    seconds: float

    def next(self, step: int, sums: Sequence[float], *, lr: float, seconds: float) -> Point:
        """Return the point that follows.

        Args:
            step: Number of the step.
            sums: Of the step: loss, target tokens, tokens; the balance loss, a mean.
            lr: What the step used.
            seconds: So far.
        """
        nll, targets, tokens, balance = sums
        return Point(
            step,
            self.tokens + int(tokens),
            self.target_tokens + int(targets),
            nll / max(targets, 1),
            lr,
            balance,
            seconds,
        )


class LossCurve:
    """The file, opened to go on after step ``last_step``; later rows, of a killed session, are dropped."""

    def __init__(self, file: Path, *, last_step: int, writes: bool = True) -> None:
        self.file = file
        self.points = [p for p in read_curve(file) if p.step <= last_step]
        self._writes = writes
        if writes:
            self._write("w", self.points, header=True)

    @property
    def last(self) -> Point:
        """The newest row; one of step 0 if there is none."""
        return self.points[-1] if self.points else Point(0, 0, 0, float("nan"), 0.0, 0.0, 0.0)

    def add(self, points: list[Point]) -> None:
        """Append rows and hand them to the operating system. CmeError if they cannot be written."""
        self.points += points
        if self._writes:
            self._write("a", points, header=False)

    def _write(self, mode: str, points: list[Point], *, header: bool) -> None:
        try:
            with self.file.open(mode, newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                if header:
                    writer.writerow([field.name for field in fields(Point)])
                writer.writerows(astuple(point) for point in points)
        except OSError as err:
            raise CmeError(
                f"cannot write {self.file} ({err.strerror}); the last checkpoint is intact"
            ) from err


def read_curve(file: Path) -> list[Point]:
    """Read the rows of a loss curve; none if there is no file. A torn last line is skipped."""
    if not file.exists():
        return []
    points = []
    with file.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if None in row.values():
                break
            points.append(
                Point(
                    int(row["step"]),
                    int(row["tokens"]),
                    int(row["target_tokens"]),
                    float(row["loss"]),
                    float(row["lr"]),
                    float(row["balance_loss"]),
                    float(row["seconds"] or 0),
                )
            )
    return points
