"""How much a model thought before its answers, and how its thoughts ended."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct

from cme_bench.scoring.record import Record

_CODES = {None: 1, "closed": 2, "budget": 3, "unclosed": 4}


class ThinkingSummary(Struct, frozen=True, kw_only=True):
    """Of all ``answers`` of a task: ``thoughts`` stood before so many of them, with ``tokens`` on average.

    ``budget``: thoughts that were closed where their budget was used up; ``unclosed``: those that never
    ended, so that there is no answer.
    """

    answers: int
    thoughts: int
    tokens: float
    budget: int
    unclosed: int


@dataclass(slots=True)
class ThoughtCounts:
    """Count the thoughts of the records that pass through; the last record of an answer counts."""

    ends: dict[int, bytearray] = field(default_factory=dict)
    tokens: dict[int, array[int]] = field(default_factory=dict)

    def counted(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records, counted."""
        for record in records:
            if record.response.text is not None:
                self._add(record)
            yield record

    def _add(self, record: Record) -> None:
        ends = self.ends.setdefault(record.repeat, bytearray())
        tokens = self.tokens.setdefault(record.repeat, array("q"))
        if (more := record.id + 1 - len(ends)) > 0:
            more = max(more, len(ends))
            ends.extend(bytes(more))
            tokens.extend(bytes(more))
        ends[record.id] = _CODES[record.response.thought_end]
        tokens[record.id] = record.response.n_thought or 0

    def summary(self) -> ThinkingSummary | None:
        """Return what there is to say; None if no answer had a thought."""
        ends = np.frombuffer(b"".join(self.ends.values()), np.uint8)
        thoughts = int(np.count_nonzero(ends > 1))
        if not thoughts:
            return None
        return ThinkingSummary(
            answers=int(np.count_nonzero(ends)),
            thoughts=thoughts,
            tokens=sum(map(sum, self.tokens.values())) / thoughts,
            budget=int(np.count_nonzero(ends == _CODES["budget"])),
            unclosed=int(np.count_nonzero(ends == _CODES["unclosed"])),
        )

    def quality(self) -> dict[str, float]:
        """Return the shares of answers whose thought ran out of its budget, and whose thought never ended."""
        found = self.summary()
        if found is None:
            return {}
        return {"thought_cut": found.budget / found.answers, "unclosed": found.unclosed / found.answers}
