"""Numbers as people and models write them, read exactly: signs, groups of digits, fractions, powers, "
"percent.

No library that we know reads these (unicode minus, "1,00,000", "70 000", "3,5", "2 1/2", "5 million") without
also reading a time, a date or a version as a number; mathematics goes to :mod:`cme_bench.scoring.maths`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import regex

from cme_bench.scoring.number_scales import MONEY_SCALE, SCALE, SCALES

Kind = Literal["number", "other", "expression"]
Decimal = Literal["point", "comma"]

_GROUPS = r"""
    [1-9]\d{0,2}(?:\.\d{3}){2,}(?:,\d+)?(?![.,]?\d)      # 1.234.567,89
  | [1-9]\d{0,2}(?:\.\d{3})+,\d+(?![.,]?\d)              # 1.234,5
  | [1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?(?![.,]?\d)         # 1,234.5
  | [1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?(?![.,]?\d)       # 1,00,000
  | [1-9]\d{0,2}(?:[ ]\d{3})+(?:[.,]\d+)?(?![.,]?\d)     # 70 000
  | [1-9]\d{0,2}(?:'\d{3})+(?:\.\d+)?(?![.,]?\d)         # 1'234.5
"""
_PLAIN = r"\d+[.,]\d+(?![.,]?\d) | \d+(?![.,]\d) | (?<![\d])\.\d+(?![.]?\d)"
_MONEY = r"(?:(?:US|CA?|AU?|HK|R|NZ|S)?\$|[€£¥₹₩₽₺₫₱฿]|Rs\.?|USD|EUR|GBP|CNY|RMB|INR|JPY|CHF)[ ]?"
_OTHER = r"""
    \d{1,4}-\d{1,2}-\d{1,4}(?!\d) | \d{1,4}/\d{1,2}/\d{1,4}(?!\d) | \d{1,2}\.\d{1,2}\.\d{2,4}(?!\d)   # dates
  | \d+:\d+(?::\d+)*                                     # times and ratios
  | \d+[hH][ ]?\d{1,2}(?!\d) | \d+'[ ]?\d{1,2}(?!\d)(?:"|'')?  # 2h30, 5'11"
  | \d{1,2}[ ]?[ap]\.?m\b\.?                              # 10am
  | 0[xX][\dA-Fa-f]+\b                                   # hexadecimal
  | \d+(?:st|nd|rd|th)\b                                 # ordinals
  | \d+(?:[.,]\d+){2,}                                   # versions, lists without spaces
"""
_TOKEN = regex.compile(
    rf"""
    (?P<sign>(?<![\d)]\s*)\b(?i:minus|negative)\s+(?=[\d.$€£¥])|(?<![A-Za-z0-9_)\]}}%.])[-+](?=[\d.$€£¥₹₩₽₺₫₱฿]|US\$|Rs))?
    (?P<money>(?<![A-Za-z]){_MONEY})?(?P<sign2>(?<=[$€£¥₹₩₽₺₫₱฿][ ]?)-)?
    (?:
      (?<![A-Za-z_\d^])(?<!\d[.,]) (?P<digits>{_GROUPS})
    | (?<![A-Za-z_\d^])(?<!\d[.,]) (?P<other>{_OTHER})
    | (?<![A-Za-z_\d^])(?<!\d[.,]) (?P<plain>{_PLAIN})
    )
    """,
    regex.VERBOSE,
)
_POWER = regex.compile(
    r"[eE]([-+]?\d{1,4})(?![\w.])|\s*(?:\*|x|X)\s*10\s*(?:\^|\*\*)\s*[({]?\s*([-+]?\d{1,4})\s*[)}]?(?![\d.])"
)
_FRACTION = regex.compile(r"\s*/\s*([1-9]\d*)(?![\d.,/]\d|\d|\s*[*/^])")
_MIXED = regex.compile(r"[ ](?:and[ ])?(\d+)\s*/\s*([1-9]\d*)(?![\d/])")
_PERCENT = regex.compile(r"\s*(?:\\?%|percent\b|per cent\b|pct\b)")
_LOWER_PLACES = regex.compile(r"(\d+)()([百千万萬만]*)(?![\d.,])")
_INEXACT = regex.compile(
    r"\+(?!\s*[\d.(a-z$√])|_\{?\d|-?ish\b|\.\.\.|\u0305|\s*‰|\s+\+\s*[a-z]{3,}"
    r"|\s*±|\s*\(mod\b|\.\(\d|\s+(?:squared|cubed)\b|,?\s+give or take\b|\s+(?:more|less|fewer)"
    r" than\s+[$€£]?\d"
    r"|\s+(?:plus|minus|times|divided by|multiplied by)\s+[$€£]?\d"
    r"|\s+at (?:most|least)\b|\s+(?:minimum|maximum)\b|\s*(?:degrees?\s*)?(?:[CF]\s+)?below zero\b|\s+mil\b"
    r"|\s*(?:or|and)\s+(?:more|less|fewer|above|below|over|higher|lower|greater)\b",
    regex.IGNORECASE,
)
"""After a number: it is not the whole of it ("42+", "42 or more", "0.333...", "5 mil")."""
_ROOT = regex.compile(r"(?:√|sqrt)\s*[({]?\s*$")
_VARIABLE = regex.compile(
    r"[a-jnopqrtuvwxyzABOPQRXYZ](?![\p{L}\p{N}])|\\(?:pi|sqrt|frac|alpha|theta)|[π√]|\((?=[a-z])"
)
_OPERATOR = regex.compile(r"\s*[-+*/^]\s*(?=[\d.(\\$√π]|[a-z]\b)|\s*!(?=\s*[-+*/=])|\s*[xX]\s*(?=\d)")
_RAISED = regex.compile(r"\s*\^\s*[({]?\s*-?\d+\s*[)}]?")
_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)


@dataclass(frozen=True, slots=True)
class Number:
    """``value``: exactly what is written, of "45%" the 45; ``percent``: whether it is a percentage."""

    value: Fraction
    percent: bool = False

    def __str__(self) -> str:
        """Return plain digits ("1234.5") where they end, else a fraction ("1/3")."""
        return _digits(self.value)


@dataclass(frozen=True, slots=True)
class Token:
    """Something with digits at ``start:end``: a ``number``, an ``expression`` ("2x", "16-3") or an "
    "``other``.
    Other are times, dates, versions, lengths in feet, ordinals and lists without spaces."""

    start: int
    end: int
    kind: Kind
    number: Number | None = None


def tokens(text: str, decimal: Decimal | None = None) -> list[Token]:
    """Return whatever has digits in ``text``, in order.

    ``text`` is folded and without LaTeX (:func:`flat`). ``decimal``: how "1,234" or "1.234" is read; by
    default a point parts decimals, and so does a single comma that cannot part thousands ("3,5", "0,500").
    """
    return list(_tokens(text, decimal))


def _tokens(text: str, decimal: Decimal | None) -> Iterator[Token]:
    pos = 0
    while m := _TOKEN.search(text, pos):
        start, pos = m.start(), m.end()
        if m["other"] is not None:
            yield Token(start, pos, "other")
            continue
        value = _plain(m["digits"] or m["plain"], decimal)
        if m["money"] and (million := MONEY_SCALE.match(text, pos)):
            value, pos = value * SCALES[million.group().lower()], million.end()
        number, pos = _suffixes(text, pos, value, whole=m["plain"] is not None and m["plain"].isdigit())
        if (m["sign"] or "+") != "+" or m["sign2"]:
            number = Number(-number.value, number.percent)
        kind: Kind = "expression" if _VARIABLE.match(text, pos) or _OPERATOR.match(text, pos) else "number"
        if power := _RAISED.match(text, pos):
            kind, pos = "expression", power.end()
        if (
            _INEXACT.match(text, pos) and not (number.value.denominator == 1 and text.startswith("...", pos))
        ) or _ROOT.search(text[max(0, start - 8) : start]):
            kind = "expression"
        yield Token(start, pos, kind, number)


def _plain(digits: str, decimal: Decimal | None) -> Fraction:
    """Return the value of digits with separators."""
    bare = digits.replace(" ", "").replace("'", "")
    commas, points = bare.count(","), bare.count(".")
    if commas == 1 and points == 0:
        grouped = len(bare.split(",")[1]) == 3 and bare[0] != "0" and len(bare.split(",")[0]) <= 3
        comma_is_point = decimal == "comma" or not (grouped and " " not in digits)
    else:
        comma_is_point = commas == 1 and bare.rfind(",") > bare.rfind(".")
    if points == 1 and commas == 0 and decimal == "comma":
        whole, _, rest = bare.partition(".")
        return Fraction(whole + rest) if len(rest) == 3 and whole not in ("", "0") else Fraction(bare)
    if comma_is_point or points > 1:
        bare = bare.replace(".", "").replace(",", ".")
    return Fraction(bare.replace(",", ""))


def _suffixes(text: str, pos: int, value: Fraction, *, whole: bool) -> tuple[Number, int]:
    """Apply what follows the digits: a power of ten, a fraction, a scale word, a percent sign."""
    if m := _POWER.match(text, pos):
        value *= Fraction(10) ** int(m.group(1) or m.group(2))
        pos = m.end()
    elif whole and (m := _MIXED.match(text, pos)):
        value, pos = value + Fraction(int(m.group(1)), int(m.group(2))), m.end()
    elif whole and (m := _FRACTION.match(text, pos)):
        value, pos = value / int(m.group(1)), m.end()
    if m := SCALE.match(text, pos):
        for word in [m.group(1) or m.group(2)] if m.group(1) or m.group(2) else m.group(3):
            value *= SCALES[word.lower()]
        pos = m.end()
    while m and m.group(3) and (m := _LOWER_PLACES.match(text, pos)):  # 1万2000, 3億5千万
        lower = Fraction(m.group(1))
        for sign in m.group(3):
            lower *= SCALES[sign]
        value, pos = value + lower, m.end()
    percent = _PERCENT.match(text, pos)
    return Number(value, percent is not None), percent.end() if percent else pos


def read_number(text: str, decimal: Decimal | None = None) -> Number | None:
    """Return the number that all of ``text`` is, with its sign, currency and percent; None otherwise.

    An integer with leading zeros ("007") is a name, not a number.
    """
    flatted = flat(text).strip().strip("\"'")
    if regex.match(r"[-+]?0\d", flatted):
        return None
    parts = tokens(flatted, decimal)
    if len(parts) != 1 or parts[0].kind != "number":
        return None
    rest = flatted[: parts[0].start] + flatted[parts[0].end :]
    return parts[0].number if regex.fullmatch(rf"(?:\s|\.$|{_MONEY}|[€£¥₹₩₽₺₫₱฿元])*", rest) else None


def same_value(a: Number, b: Number) -> bool:
    """Return whether two numbers are equal; of "45%" and "45", and of "45%" and "0.45", they are."""
    if a.value == b.value:
        return True
    return a.percent != b.percent and (a.value / 100 if a.percent else a.value) == (
        b.value / 100 if b.percent else b.value
    )


_UNDERSCORED = regex.compile(r"(?<![\w.])[1-9]\d{0,2}(?:_\d{3})+(?!\w)")
_SPACES = regex.compile(r"\\[,;: ]|~|\\thinspace|\\quad|\\qquad")
_MINUS = regex.compile(r"(?<=[=(:≈])\s*-\s+(?=[\d.])")
_LATEX = (
    (regex.compile(r"\{,\}"), ","),
    (regex.compile(r"(?:°|\^\s*\{?\s*\\circ\s*\}?)\s*(?=\d)"), " "),
    (regex.compile(r"\\!|\\left|\\right|\\displaystyle|\^\s*\{?\s*\\circ\s*\}?|\\degree|°"), ""),
    (regex.compile(r"\\(?:times|cdot|ast)\b"), "*"),
    (regex.compile(r"\\(?:div)\b"), "/"),
    (regex.compile(r"\\(?:approx|simeq|sim)\b|≃|∼"), "≈"),
    (regex.compile(r"\\(?:leq?|geq?|lt|gt|neq?)\b|[≤≥≠]"), "<"),
    (regex.compile(r"\\(?:pm|mp)\b"), "±"),
    (regex.compile(r"\\([$%#&])"), r"\1"),
    (regex.compile(r"\\(?:euro|pounds|yen)\b"), "$"),
    (regex.compile(r"(?<=\d)\s*\\[dtc]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r" \1/\2"),
    (regex.compile(r"\\[dtc]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r"\1/\2"),
    (regex.compile(r"\\[dtc]?frac\s*(\d)\s*(\d)"), r"\1/\2"),
    (
        regex.compile(r"\\[dtc]?frac\s*(\d)\s*\{\s*(\d+)\s*\}|\\[dtc]?frac\s*\{\s*(\d+)\s*\}\s*(\d)"),
        r"\1\3/\2\4",
    ),
    (regex.compile(r"\^\s*\{\s*(-?\d+)\s*\}"), r"^\1"),
)


def flat(text: str) -> str:
    """Return ``text`` (folded) with LaTeX numbers as plain ones: ``\\\\frac{3}{4}`` as "3/4"."""
    text = _DIGIT.sub(lambda m: str(unicodedata.digit(m.group())), text)
    text = _UNDERSCORED.sub(lambda m: m.group().replace("_", ""), text.replace("٫", ".").replace("٬", ","))
    if "\\" in text or "{" in text or not text.isascii() or "~" in text:
        text = _SPACES.sub(" ", text)
        for pattern, plain in _LATEX:
            text = pattern.sub(plain, text)
    return _MINUS.sub(" -", text)


def _digits(value: Fraction) -> str:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1 or value.denominator == 1:
        return str(value)
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    whole = str(abs(value.numerator * 10**places // value.denominator)).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{whole[:-places]}.{whole[-places:]}"
