"""The scores of a task's items as columns, so that a file of any size is aggregated in one pass."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cme_bench.scoring.record import Record
from cme_bench.scoring.ties import Decision

_STORED, _TRUNCATED, _GENERATED, _HIT_LENGTH, _READ, _EMPTY = (1 << bit for bit in range(6))


@dataclass(slots=True)
class ScoreColumns:
    """Hold the scores of every item at its id: 8 bytes a metric, one of marks, one for how it was decided."""

    marks: bytearray = field(default_factory=bytearray)
    decisions: bytearray = field(default_factory=bytearray)
    numbers: dict[str, array[float]] = field(default_factory=dict)
    others: dict[str, dict[int, Any]] = field(default_factory=dict)  # scores that are no numbers

    @property
    def names(self) -> list[str]:
        return list(self.numbers)

    def add(self, record: Record, decided: Decision) -> None:
        place = record.id
        if place >= len(self.marks):
            self._grow(max(place + 1, 2 * len(self.marks)))
        self.marks[place] = _marks(record)
        self.decisions[place] = decided
        for name in self.numbers.keys() - record.scores.keys():
            self.numbers[name][place] = math.nan  # what an earlier record of the item said
            self.others.get(name, {}).pop(place, None)
        for name, value in record.scores.items():
            if name not in self.numbers:
                self.numbers[name] = array("d", [math.nan]) * len(self.marks)
            if isinstance(value, float | int):
                self.numbers[name][place] = value
                if name in self.others:
                    self.others[name].pop(place, None)
            else:
                self.numbers[name][place] = math.nan
                self.others.setdefault(name, {})[place] = value

    def _grow(self, size: int) -> None:
        more = size - len(self.marks)
        self.marks.extend(bytes(more))
        self.decisions.extend(bytes(more))
        for column in self.numbers.values():
            column.extend(array("d", [math.nan]) * more)

    def values(self, name: str) -> Any:
        """Return the values of items that have one, by ascending id: an array of numbers, or a list if some
        are none.

        A number that is not one (NaN, stored as null) is NaN in the array.
        """
        found = np.frombuffer(self.numbers[name])
        others = self.others.get(name) or {}
        places = sorted({*np.flatnonzero(~np.isnan(found)).tolist(), *others})
        if all(value is None for value in others.values()):
            return found[places]
        return [others[place] if place in others else float(found[place]) for place in places]

    def quality(self) -> dict[str, float]:
        """Return the shares as :class:`TaskResult` has them."""
        marks = np.frombuffer(self.marks, np.uint8)

        def count(mark: int) -> int:
            return int(np.count_nonzero(marks & mark))

        quality = {"truncated": count(_TRUNCATED) / count(_STORED)}
        if generated := count(_GENERATED):
            quality["hit_length"] = count(_HIT_LENGTH) / generated
        if read := count(_READ):
            quality["empty"] = count(_EMPTY) / read
        decisions = np.frombuffer(self.decisions, np.uint8)
        if decided := int(np.count_nonzero(decisions)):
            quality["ties"] = int(np.count_nonzero(decisions == Decision.TIE)) / decided
            quality["near_ties"] = int(np.count_nonzero(decisions >= Decision.NEAR)) / decided
        return quality


def _marks(record: Record) -> int:
    marks = _STORED | (_TRUNCATED if record.truncated > 0 else 0)
    finish = record.response.finish
    if finish is not None:
        marks |= _GENERATED | (_HIT_LENGTH if finish == "length" else 0)
    if record.answer is not None:
        marks |= _READ | (_EMPTY if record.answer.empty else 0)
    return marks
