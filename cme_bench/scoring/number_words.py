"""English words for whole numbers ("forty-two", "three hundred and five")."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_VALUES = {word: i for i, word in enumerate(_UNITS)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_WORD = rf"(?:{'|'.join([*_VALUES, *_SCALES])})"
_WORDS = re.compile(rf"{_WORD}(?:(?:\s+and\s+|\s+|-){_WORD})*\b(?!\s+(?:or|to|and|of|in)\b|-)", re.IGNORECASE)


def number_word(text: str, pos: int) -> Fraction | None:
    """Return the number whose words stand in ``text`` at ``pos``; None also for "one of" and "two or"."""
    m = _WORDS.match(text, pos)
    if m is None:
        return None
    total, group = 0, 0
    for word in re.findall(r"[a-z]+", m.group().lower()):
        if word in _VALUES:
            group += _VALUES[word]
        elif word == "hundred":
            group = max(group, 1) * 100
        elif word in _SCALES:
            total, group = total + max(group, 1) * _SCALES[word], 0
    return Fraction(total + group)
