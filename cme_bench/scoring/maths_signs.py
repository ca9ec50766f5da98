"""Mathematics in one spelling, and what tells two expressions apart though their values look alike.

math-verify passes over bases, primes, units, the order of an angle's points, dots and braces of a set.
"""

from __future__ import annotations

import re
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
    r"(?<=[\d}])(?:\\[,;:! ]|[\s~])*([A-Za-z]+)(?:\s*/\s*([A-Za-z]+))?(?:\^\{?\d\}?)?$"
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
    one, other = _MARKED_UNIT.sub("", a), _MARKED_UNIT.sub("", b)
    return (one, other) if (one == a) != (other == b) else (a, b)


def told_apart(a: str, b: str) -> bool:
    """Return whether two expressions, in LaTeX's signs and unwrapped, differ in what their values leave out.

    Units, bases, brackets and points count where both have some: one that only one states may be the
    question's.
    """
    if any(one and other and one != other for one, other in zip(_stated(a), _stated(b), strict=True)):
        return True
    if ("=" in a) != ("=" in b):
        a, b = a.rpartition("=")[2], b.rpartition("=")[2]
    return _marks(a) != _marks(b)


def _stated(text: str) -> tuple[Any, ...]:
    """Return the units, the base, the kind of bracket and the named points; each may be missing."""
    base, bracket = _BASE.search(text), _TUPLE.fullmatch(text)
    return _units(text), base and base[1], bracket and bracket[1], _points(text)


def _marks(text: str) -> tuple[Any, ...]:
    """Return what says something also by its absence: cut decimals, dots of a list, primes, derivatives,
    bounds."""
    return (
        bool(_CUT.search(text)),
        _inner_dots(text),
        len(_PRIME.findall(text)),
        _DERIVATIVE.findall(text),
        _BOUND.findall(text.lower()),
    )


def _units(text: str) -> tuple[str, ...]:
    """Return the units at the end of a number, each in one spelling; none if one of them is not known."""
    m = _NUMBER_WITH_UNIT.search(text)
    found = tuple(_UNITS.get(name, "") for name in m.groups() if name) if m else ()
    return found if all(found) else ()


def _inner_dots(text: str) -> bool:
    m = _DOTS.search(text)
    return m is not None and bool(re.search(r"\w", text[m.end() :]))


def _points(text: str) -> list[tuple[str, str]]:
    """Return the angles and triangles that are named, an angle from either side, a triangle in any order."""
    return [
        (kind, min(name, name[::-1]) if kind == "angle" else "".join(sorted(name)))
        for kind, name in _POINTS.findall(text)
    ]
