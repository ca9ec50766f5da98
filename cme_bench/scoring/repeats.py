"""Several answers to each item: their mean, pass@k and the majority's answer. Pure functions, and columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from cme_bench.scoring.columns import ScoreColumns
from cme_bench.scoring.metrics import normalize_answer
from cme_bench.scoring.record import Record
from cme_bench.scoring.text import folded_case
from cme_bench.scoring.ties import Decision

Floats = NDArray[np.float64]
_NO_ANSWER = {"", "[invalid]"}
"""The second is what lm-eval's filters give where they find nothing."""


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the chance that one of ``k`` answers is right, of ``n`` of which ``correct`` are: 1 - C(n - c,
    k) / C(n, k), the unbiased estimator of Chen et al. (2021). Raises ValueError for k above n."""
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} answers")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def ks(repeats: int) -> list[int]:
    """Return the k for which pass@k is reported: powers of two, and all answers."""
    return sorted({*(1 << bit for bit in range(repeats.bit_length())), repeats} - {0})


def majority(votes: Sequence[tuple[str | None, float]]) -> float:
    """Return the score of the answer that most of ``votes`` (answer, its score) give.

    None is no answer and no vote; without any vote the score is the mean of all, as of an empty answer.
    Answers with equally many votes share: their mean counts, which no order of the answers changes.
    """
    counted = Counter(answer for answer, _ in votes if answer is not None)
    if not counted:
        return math.fsum(score for _, score in votes) / len(votes)
    most = max(counted.values())
    best = [answer for answer, count in counted.items() if count == most]
    means = [np.mean([score for answer, score in votes if answer == each]) for each in best]
    return float(np.mean(means))


def voted_answer(record: Record, answer_type: str | None, pipeline: str) -> str | None:
    """Return the answer of a record as votes compare it; None if no answer was found.

    ``answer_type``: of a task read by our rules; else ``pipeline`` names the lm-eval filters that read it.
    """
    if record.answer is not None:
        text = "" if record.answer.empty else record.answer.text
    elif record.filtered is not None and pipeline in record.filtered:
        text = record.filtered[pipeline]
    else:
        text = record.response.text or ""
    if text in _NO_ANSWER:
        return None
    if answer_type == "short":
        return normalize_answer(text) or text
    return "".join(folded_case(text).split())


@dataclass(slots=True)
class RepeatColumns:
    """Hold the scores of every answer to every item: columns for each repeat, and the votes on ``primary``.

    ``combined`` are the scores that a task's own filters made of all answers to an item, if they did.
    """

    primary: str
    answer_type: str | None
    pipeline: str
    repeats: int
    columns: list[ScoreColumns] = field(default_factory=list)
    combined: ScoreColumns = field(default_factory=ScoreColumns)
    votes: dict[int, dict[int, tuple[str | None, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.columns = [ScoreColumns() for _ in range(self.repeats)]

    def add(self, record: Record) -> None:
        """Add a record; the last one of an item's repeat counts. One that stands for several has no vote."""
        if record.repeat >= self.repeats:
            return
        self.columns[record.repeat].add(record, Decision.NONE)
        if record.combined is not None:
            self.combined.add(_with_scores(record, record.combined), Decision.NONE)
        score = record.scores.get(self.primary)
        if isinstance(score, float | int):
            vote = voted_answer(record, self.answer_type, self.pipeline)
            self.votes.setdefault(record.id, {})[record.repeat] = (vote, float(score))

    @property
    def names(self) -> list[str]:
        """The metrics of any answer, in the order in which they came."""
        return list(dict.fromkeys(name for columns in self.columns for name in columns.names))

    def item_means(self, name: str) -> Floats:
        """Return the mean over its answers of every item that has a number of the metric."""
        size = max(len(columns.marks) for columns in self.columns)
        table = np.full((self.repeats, size), np.nan)
        for row, columns in zip(table, self.columns, strict=True):
            if name in columns.numbers:
                found = np.frombuffer(columns.numbers[name])
                row[: len(found)] = found
        counts = np.count_nonzero(~np.isnan(table), axis=0)
        kept = counts > 0
        return np.asarray(np.nansum(table[:, kept], axis=0) / counts[kept])

    def passes(self) -> dict[str, Floats]:
        """Return pass@k of every item, where all answers are right or wrong; else nothing."""
        items = [[score for _, score in votes] for votes in self._items()]
        if not items or any(score not in (0.0, 1.0) for scores in items for score in scores):
            return {}
        return {
            f"pass@{k}": np.array([pass_at_k(len(s), int(sum(s)), k) for s in items if len(s) >= k])
            for k in ks(self.repeats)
        }

    def majorities(self) -> Floats:
        """Return the score of the majority's answer, of every item."""
        return np.array([majority(votes) for votes in self._items()])

    def _items(self) -> list[list[tuple[str | None, float]]]:
        """Return the votes of every item by repeat, items by id: sums do not hang on which came first."""
        return [[votes[repeat] for repeat in sorted(votes)] for _, votes in sorted(self.votes.items())]

    def quality(self) -> dict[str, float]:
        """Return the shares of all answers, as :class:`~.aggregate.TaskResult` has them."""
        parts = [columns.quality() for columns in self.columns if any(columns.marks)]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: float(np.mean([part.get(name, 0.0) for part in parts])) for name in names}


def _with_scores(record: Record, scores: dict[str, Any]) -> Record:
    return replace(record, scores=scores)


def merged(records: Iterable[Record]) -> Record:
    """Return one record for the answers to one item: its scores are their means, or what the task's own
    filters made of them. What is no number is that of the first answer."""
    every = sorted(records, key=lambda record: record.repeat)
    first = every[0]
    if len(every) == 1 and first.combined is None:
        return first
    combined = next((record.combined for record in every if record.combined is not None), None)
    names = dict.fromkeys(name for record in every for name in record.scores)
    scores = combined or {name: _mean([record.scores.get(name) for record in every]) for name in names}
    return replace(first, scores=scores, repeats=len(every))


def _mean(values: Sequence[Any]) -> Any:
    numbers = [value for value in values if isinstance(value, float | int)]
    return math.fsum(numbers) / len(numbers) if len(numbers) == len(values) else values[0]
