"""The plan of an analysis that is fixed before the first score: outcomes, margins, stages, corrections."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from cme_bench.util.errors import UsageError, did_you_mean

Correction = Literal["bonferroni", "none"]
Pairing = Literal["seeds", "none"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """The rules that decide claims of scores, in percent points.

    headline: the rows B and A of the primary outcome, the difference of their averages in every form; all
    other claims of scores are secondary. margin: of equivalence. mde: the difference that the seeds must be
    able to show with ``power``; headline_mde: that of the headline pair, if it is another. level: of a family
    of claims, and correction: how the claims of a family share it. pairing: whether rows are compared seed by
    seed. first_seeds: of every row, before the
    spread is looked at; cap: most seeds of a row; others_cap: of a row outside
    the headline, if it is another. others_form: the form in which all other rows must show
    ``mde``. speed_margin: rounds whose ratio lies so near 1 count as equal. learning_rate, stopping: the
    rules in words.
    """

    headline: tuple[str, str] | None = None
    margin: float = 1.0
    mde: float = 0.5
    level: float = 0.05
    power: float = 0.8
    correction: Correction = "none"
    pairing: Pairing = "none"
    first_seeds: int = 10
    cap: int = 40
    others_cap: int | None = None
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _above_zero(value: Any) -> bool:
    return _is_number(value) and value > 0


def _share(value: Any) -> bool:
    return _is_number(value) and 0 < value < 1


def _two_or_more(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 2


_NUMBERS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("margin", "mde", "speed_margin", "headline_mde"), _above_zero, "be a number above 0"),
    (("level", "power"), _share, "lie between 0 and 1"),
    (("first_seeds", "cap", "others_cap"), _two_or_more, "be a whole number of 2 or more"),
)
_OPTIONAL = ("headline_mde", "others_cap")
_CHOICES = {
    "correction": get_args(Correction),
    "pairing": get_args(Pairing),
    "others_form": ("generated", "likelihood"),
}


def _check(protocol: Protocol, place: str) -> None:
    def fail(text: str) -> None:
        raise UsageError(f"{place}: protocol: {text}")

    for names, fits, must in _NUMBERS:
        for name in names:
            value = getattr(protocol, name)
            if not fits(value) and not (value is None and name in _OPTIONAL):
                fail(f"{name} must {must}, not {value!r}")
    for name in ("learning_rate", "stopping"):
        if not isinstance(getattr(protocol, name), str):
            fail(f"{name} must be a text, not {getattr(protocol, name)!r}")
    if protocol.cap < protocol.first_seeds:
        fail(f"cap ({protocol.cap}) lies below first_seeds ({protocol.first_seeds})")
    if protocol.others_cap is not None and protocol.others_cap < protocol.first_seeds:
        fail(f"others_cap ({protocol.others_cap}) lies below first_seeds ({protocol.first_seeds})")
    for name, choices in _CHOICES.items():
        if (value := getattr(protocol, name)) not in choices:
            fail(f"{name} {value!r} is none of {', '.join(choices)}")
