"""The plan of an analysis that is fixed before the first score: outcomes, margins, stages, corrections."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from cme_bench.util.errors import UsageError, did_you_mean

Correction = Literal["bonferroni", "none"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """The rules that decide claims of scores, in percent points.

    headline: the rows B and A of the primary outcome, the difference of their averages in every form; all
    other claims of scores are secondary. margin: of equivalence. mde: the difference that the seeds must be
    able to show with ``power``; headline_mde: that of the headline pair, if it is another. level: of a family
    of claims, and correction: how the claims of a family share it. first_seeds: of every row, before the
    spread is looked at; cap: most seeds of a row. others_form: the form in which all other rows must show
    ``mde``. speed_margin: rounds whose ratio lies so near 1 count as equal. learning_rate, stopping: the
    rules in words.
    """

    headline: tuple[str, str] | None = None
    margin: float = 1.0
    mde: float = 0.5
    level: float = 0.05
    power: float = 0.8
    correction: Correction = "none"
    first_seeds: int = 10
    cap: int = 40
    others_form: str = "likelihood"
    speed_margin: float = 0.05
    headline_mde: float | None = None
    learning_rate: str = ""
    stopping: str = ""

    def level_of(self, tests: int) -> float:
        """Return the level of one claim in a family of so many tests."""
        return self.level / max(tests, 1) if self.correction == "bonferroni" else self.level

    def plain(self) -> dict[str, Any]:
        """Return all fields that say something as JSON values."""
        given = {key: v for key, v in asdict(self).items() if v is not None}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}


USUAL = Protocol()
"""Of scales that register nothing: a margin of 1 point, every claim for itself."""


def read_protocol(given: Mapping[str, Any], rows: Mapping[str, Any], place: str) -> Protocol:
    """Return the protocol of a scale. UsageError with its place for unknown keys, rows and bad values."""
    if not isinstance(given, Mapping):
        raise UsageError(f"{place}: 'protocol' must be a mapping")
    known = [f.name for f in fields(Protocol)]
    for key in given:
        if key not in known:
            raise UsageError(f"{place}: protocol: unknown key {key!r}{did_you_mean(str(key), known)}")
    pair = given.get("headline")
    if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
        raise UsageError(f"{place}: protocol: headline must be two rows, [B, A]")
    for name in pair:
        if name not in rows:
            raise UsageError(f"{place}: protocol: headline names {name!r}{did_you_mean(str(name), rows)}")
    protocol = Protocol(**{**given, "headline": (str(pair[0]), str(pair[1]))})
    _check(protocol, place)
    return protocol


def _check(protocol: Protocol, place: str) -> None:
    def fail(text: str) -> None:
        raise UsageError(f"{place}: protocol: {text}")

    for name in ("margin", "mde", "speed_margin", "headline_mde"):
        value = getattr(protocol, name)
        if name == "headline_mde" and value is None:
            continue
        if not _is_number(value) or value <= 0:
            fail(f"{name} must be a number above 0, not {value!r}")
    for name in ("level", "power"):
        if not _is_number(getattr(protocol, name)) or not 0 < getattr(protocol, name) < 1:
            fail(f"{name} must lie between 0 and 1, not {getattr(protocol, name)!r}")
    for name in ("first_seeds", "cap"):
        value = getattr(protocol, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 2:
            fail(f"{name} must be a whole number of 2 or more, not {value!r}")
    for name in ("learning_rate", "stopping"):
        if not isinstance(getattr(protocol, name), str):
            fail(f"{name} must be a text, not {getattr(protocol, name)!r}")
    if protocol.cap < protocol.first_seeds:
        fail(f"cap ({protocol.cap}) lies below first_seeds ({protocol.first_seeds})")
    if protocol.correction not in ("bonferroni", "none"):
        fail(f"correction {protocol.correction!r} is none of bonferroni, none")
    if protocol.others_form not in ("generated", "likelihood"):
        fail(f"others_form {protocol.others_form!r} is none of generated, likelihood")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
