"""Mathematics in one spelling, and what tells two expressions apart though their values look alike.

math-verify passes over bases, primes, units, the order of an angle's points, dots and braces of a set.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

_SIGNS = {
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
}
_SIGN = re.compile("|".join(_SIGNS))
_ROOT = re.compile(r"([√∛])\s*(?:\(([^()]+)\)|\{([^{}]+)\}|(\d+(?:\.\d+)?|[A-Za-z]))")
_REPEATING = re.compile(r"(?<![\d.])(\d+)\.(\d*)\\(?:overline|bar)\s*(?:\{(\d+)\}|(\d))(?!\d)")
_THOUSANDS = re.compile(r",\\!\s*")

_NUMBER_WITH_UNIT = re.compile(
    r"(?<=[\d}])(?:\\[,;:! ]|[\s~])*([A-Za-z]+)(?:\s*/\s*([A-Za-z]+))?(?:\s*\^\s*\{?(\d)\}?)?$"
)
_UNITS = {
    spelling: names.split()[0]
    for names in (
        "mm millimeter millimeters millimetre millimetres",
        "cm centimeter centimeters centimetre centimetres",
        "m meter meters metre metres",
        "km kilometer kilometers kilometre kilometres",
        "in inch inches",
        "ft foot feet",
        "yd yard yards",
        "mi mile miles",
        "mg milligram milligrams",
        "g gram grams",
        "kg kilogram kilograms",
        "ml mL milliliter milliliters millilitre millilitres",
        "L l liter liters litre litres",
        "s sec second seconds",
        "min minute minutes",
        "h hr hour hours",
        "day days",
        "week weeks",
        "month months",
        "year years",
        "cent cents",
        "dollar dollars",
        "percent pct",
        "mph",
        "kph kmh",
    )
    for spelling in names.split()
}
"""Spellings of a unit, by which "1 m" is not "1 cm"; of any other unit nobody can say."""
_MARKED_UNIT = re.compile(
    r"(?<=[\d}])(?:\\[,;:! ]|[\s~])*\\(?:text|textrm|mathrm|mbox)\s*\{\s*(?:"
    + "|".join(map(re.escape, sorted(_UNITS, key=len, reverse=True)))
    + r"|[A-Za-z]+\s*/\s*[A-Za-z]+)(?:\^\{?\d\}?)?\s*\}(?:\^\{?\d\}?)?$"
)
_BASE = re.compile(r"[0-9A-F]\s*_\s*\{?\s*(\d+)\s*\}?$")
_PRIME = re.compile(r"'|\\prime")
_DERIVATIVE = re.compile(r"\\frac\s*\{\s*(?:d|\\partial)([^{}]*)\}\s*\{\s*(?:d|\\partial)([^{}]*)\}")
_DOTS = re.compile(r"\\[lc]?dots|\.\.\.")
_CUT = re.compile(r"\.\d+\s*(?:\\[lc]?dots|\.\.\.)\s*$")
_BOUND = re.compile(
    r"\b(?:or|and)\s+(?:more|less|fewer|greater|above|below)\b|\b(?:at\s+(?:least|most)|(?:more|less)\s+than)\b"
)
_OPEN_END = re.compile(r"\d\s*[+?]$")
_RATIO = re.compile(r"\d\s*:\s*\d")
_INVERSE = re.compile(r"[fgh]\s*\^\s*\{?\s*-\s*1\s*\}?\s*\(")
_DOLLARS = re.compile(r"\\?\$\s*\d")
_NAMES = re.compile(r"[A-Z]{2,}")
_VARIABLES = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_CHOICE = re.compile(r"\W*[A-Ea-e]\W*")
_LISTED = re.compile(r"-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?)+")
_GROUPED = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|-?[1-9]\d?(?:,\d{2})+,\d{3}")
_POINTS = re.compile(r"\\(angle|triangle)\s*([A-Z]{2,})")
_TUPLE = re.compile(r"(?:\\left\s*)?(\\\{|\()[^()]*,[^()]*(?:\\right\s*)?(\\\}|\))")


def in_signs_of_latex(text: str) -> str:
    r"""Return ``text`` with √, ∞ and ≤ as LaTeX has them, ``6,\!000`` as 6,000, ``0.\overline{3}`` as a
    fraction."""
    text = _THOUSANDS.sub(",", text).replace(r"\varnothing", r"\emptyset")
    text = _REPEATING.sub(_fraction, text)
    if text.isascii():
        return text
    return _ROOT.sub(_root, _SIGN.sub(lambda m: _SIGNS[m.group()], text))


def _root(m: re.Match[str]) -> str:
    degree = "[3]" if m[1] == "∛" else ""
    return rf"\sqrt{degree}{{{next(part for part in m.groups()[1:] if part)}}}"


def _fraction(m: re.Match[str]) -> str:
    once, again = m[2], m[3] or m[4]
    over = int(m[1] + once + again) - int(m[1] + once)
    return rf"\frac{{{over}}}{{{10 ** len(once) * (10 ** len(again) - 1)}}}"


def without_units(a: str, b: str) -> tuple[str, str]:
    r"""Return both without ``\text{ m/s}``, ``\text{ cm}^2`` and the like at their end, where only one has a
    unit."""
    if _DOLLARS.match(a) or _DOLLARS.match(b):
        return a, b  # "$5" is not "5 cents"
    one, other = _MARKED_UNIT.sub("", a), _MARKED_UNIT.sub("", b)
    return (one, other) if (one == a) != (other == b) else (a, b)


def told_apart(a: str, b: str) -> bool:
    """Return whether two expressions, in LaTeX's signs and unwrapped, differ in what their values leave out.

    Units, bases, brackets and points count where both have some: one that only one states may be the
    question's.
    """
    if any(one and other and one != other for one, other in zip(_stated(a), _stated(b), strict=True)):
        return True
    if _NAMES.fullmatch(a) and _NAMES.fullmatch(b) and a != b:
        return True
    if _differ_in_case(a, b):
        return True
    if ("=" in a) != ("=" in b):
        a, b = a.rpartition("=")[2], b.rpartition("=")[2]
    return _marks(a) != _marks(b)


def listed(text: str) -> list[Fraction]:
    """Return the numbers that commas part ("1, 2"); none where they part thousands, or nothing."""
    if _GROUPED.fullmatch(text) or not _LISTED.fullmatch(text):
        return []
    return [Fraction(part.strip()) for part in text.split(",")]


def _differ_in_case(a: str, b: str) -> bool:
    """Return whether variables are the same but for capitals ("n" and "N"); a letter of a choice has none."""
    if _CHOICE.fullmatch(a) and _CHOICE.fullmatch(b):
        return False
    one, other = set(_VARIABLES.findall(a)), set(_VARIABLES.findall(b))
    return one != other and {name.lower() for name in one} == {name.lower() for name in other}


def _stated(text: str) -> tuple[Any, ...]:
    """Return the units, the base, the kind of bracket and the named points; each may be missing."""
    base, bracket = _BASE.search(text), _TUPLE.fullmatch(text)
    return _units(text), base and base[1], bracket and bracket[1], _points(text)


def _marks(text: str) -> tuple[Any, ...]:
    """Return what says something also by its absence: cut decimals, dots of a list, primes, derivatives,
    bounds, ratios, inverse functions."""
    return (
        bool(_CUT.search(text)),
        _inner_dots(text),
        len(_PRIME.findall(text)),
        _DERIVATIVE.findall(text),
        _BOUND.findall(text.lower()),
        bool(_OPEN_END.search(text)),
        bool(_RATIO.search(text)),
        bool(_INVERSE.search(text)),
    )


def _units(text: str) -> tuple[str, ...]:
    """Return the units at the end of a number, each in one spelling; none if one of them is not known."""
    m = _NUMBER_WITH_UNIT.search(text)
    if m is None:
        return ("percent", "") if text.endswith("%") else ("dollar", "") if _DOLLARS.match(text) else ()
    found = tuple(_UNITS.get(name, "") for name in m.groups()[:2] if name)
    return (*found, m[3] or "") if all(found) else ()


def _inner_dots(text: str) -> bool:
    m = _DOTS.search(text)
    return m is not None and bool(re.search(r"\w", text[m.end() :]))


def _points(text: str) -> list[tuple[str, str]]:
    """Return the angles and triangles that are named, an angle from either side, a triangle in any order."""
    return [
        (kind, min(name, name[::-1]) if kind == "angle" else "".join(sorted(name)))
        for kind, name in _POINTS.findall(text)
    ]
