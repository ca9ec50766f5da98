"""Progress of unfinished tasks, by their samples as they are appended, and the pace of a run."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cme_bench.reports.intervals import BINARY, Interval, share_so_far
from cme_bench.runs.records import RunRecord, TaskRecord
from cme_bench.runs.store import samples_file
from cme_bench.scoring.scales import SHARES
from cme_bench.util.errors import CmeError
from cme_bench.util.files import open_regular

CHUNK = 16 * 2**20
"""Bytes that are read of a file at a time; a line that is longer is not followed."""
WINDOW_SECONDS = 30.0
"""Rates are those of about so many seconds."""


class _Line(msgspec.Struct):
    """The part of a record that counts here."""

    id: int
    task: str
    scores: dict[str, Any]
    repeat: int = 0


_LINES = msgspec.json.Decoder(_Line)


@dataclass(slots=True)
class TaskFollower:
    """One task's samples: the last value of each answer, as far as they were read."""

    folder: Path
    task: str
    planned: TaskRecord
    offset: int = 0
    answers: dict[tuple[int, int], float | None] = field(default_factory=dict)
    fault: str = ""

    @property
    def done(self) -> int:
        """Answers that are there, of ``total``."""
        return min(len(self.answers), self.total)

    @property
    def total(self) -> int:
        """Answers that there will be."""
        return self.planned.n * self.planned.repeats

    def read(self, most: int = CHUNK) -> int:
        """Read what was appended, ``most`` bytes at most; return how many were read."""
        if self.fault:
            return 0
        try:
            with open_regular(samples_file(self.folder, self.task), inside=self.folder) as stream:
                if stream.seek(0, 2) < self.offset:  # another file by now
                    self.offset = 0
                    self.answers.clear()
                stream.seek(self.offset)
                text = stream.read(most)
        except (OSError, CmeError):
            return 0
        whole = text[: text.rfind(b"\n") + 1]
        if not whole and len(text) >= CHUNK:
            self.fault = "a record is too long to be followed"
            return len(text)
        try:
            for line in whole.splitlines():
                self._take(_LINES.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.fault = "a record is broken"
        self.offset += len(whole)
        return len(text)

    def _take(self, line: _Line) -> None:
        if line.task == self.planned.hash:
            self.answers[line.id, line.repeat] = _share(line.scores.get(self.planned.primary))

    def score(self) -> Interval | None:
        """Return the mean of the items so far with its interval; None for what is no mean of shares.

        Engines answer in an order of their own, so this may be off by more than the interval.
        """
        if self.planned.primary not in SHARES or self.planned.combined:
            return None
        items: dict[int, list[float]] = {}
        for (item, _), value in self.answers.items():
            if value is None:
                return None
            items.setdefault(item, []).append(value)
        if not items:
            return None
        means = [sum(values) / len(values) for values in items.values()]
        return share_so_far(means, binary=self.planned.primary in BINARY and self.planned.repeats == 1)


def _share(value: Any) -> float | None:
    number = isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1
    return float(value) if number else None


@dataclass(frozen=True, slots=True)
class Pace:
    """Answers and tokens a second; None where they cannot be told yet."""

    items: float | None = None
    tokens: float | None = None

    def left(self, items: int) -> float | None:
        """Return the seconds that ``items`` more take at this pace."""
        return items / self.items if self.items else None


class PaceMeter:
    """Measures a run by what its ``run.json`` counts, over the last WINDOW_SECONDS of its own clock."""

    def __init__(self) -> None:
        self._session = 0
        self._seen: deque[tuple[float, int, int]] = deque()

    def look(self, run: RunRecord) -> Pace:
        """Return the pace, given ``run.json`` as it is now."""
        if not run.sessions:
            return Pace()
        if len(run.sessions) != self._session:  # it was stopped and goes on
            self._session = len(run.sessions)
            self._seen.clear()
        session = run.sessions[-1]
        engine = session.engine
        tokens = 0 if engine is None else engine.tokens_computed or engine.tokens_generated
        now = (session.seconds, session.items, tokens)
        if not self._seen or self._seen[-1] != now:
            self._seen.append(now)
        while len(self._seen) > 2 and now[0] - self._seen[1][0] >= WINDOW_SECONDS:
            self._seen.popleft()
        then = self._seen[0] if len(self._seen) > 1 else (0.0, 0, 0)
        seconds = now[0] - then[0]
        if not (math.isfinite(seconds) and seconds > 0):
            return Pace()
        rates = [(a - b) / seconds for a, b in zip(now[1:], then[1:], strict=True)]
        return Pace(*(rate if rate > 0 else None for rate in rates))
