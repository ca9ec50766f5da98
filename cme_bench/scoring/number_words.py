"""Words for numbers: English ones ("forty-two", "two and a half") and Chinese numerals ("四十二")."""

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
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6}
_PARTS |= {"seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "hundredth": 100}

_SIGN = re.compile(r"(?:minus|negative)\s+", re.IGNORECASE)
_WORD = re.compile(rf"(?:{'|'.join([*_VALUES, *_SCALES])})\b", re.IGNORECASE)
_JOIN = re.compile(r"\s+and\s+|\s+|-", re.IGNORECASE)
_PART = re.compile(rf"(?:(a|an|{'|'.join(_UNITS[1:10])})[\s-]+)?({'|'.join(_PARTS)})(s?)\b", re.IGNORECASE)
_GOES_ON = re.compile(r"\s+(?:or|to|and|of|in|point)\b|-", re.IGNORECASE)

_DIGITS = {digit: i for i, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_TIMES = {"十": 10, "百": 100, "千": 1000}
_CHINESE = re.compile(
    r"负?(?:百分之|([零〇一二两三四五六七八九十百千万亿]+)分之)?([零〇一二两三四五六七八九十百千万亿]+)"
)
_CLAUSE_ENDS = re.compile(r"([^\W\d_]?)(?:です|でした|だ)?\s*(?:$|[,.;!。、\n)(])")
"""After a Chinese numeral: at most a measure word, then the end of its clause (not 一样, 十分明显)."""


def number_word(text: str, pos: int) -> tuple[Fraction, int] | None:
    """Return the number whose words stand in ``text`` (folded) at ``pos``, and where they end.

    None also for "one of" and "two or", which name no number.
    """
    if (found := _chinese(text, pos)) is not None:
        return found
    sign = _SIGN.match(text, pos)
    start = sign.end() if sign else pos
    found = _part(text, start) or _whole(text, start)
    if found is None or _GOES_ON.match(text, found[1]):
        return None
    return (-found[0] if sign else found[0]), found[1]


def _part(text: str, pos: int) -> tuple[Fraction, int] | None:
    """Return a fraction: "half", "a third", "three quarters" (but not "twenty third")."""
    m = _PART.match(text, pos)
    if m is None or (m[1] is None and m[2].lower() != "half"):
        return None
    count = _VALUES.get((m[1] or "").lower(), 1)
    if (count > 1) != bool(m[3]):
        return None
    return Fraction(count, _PARTS[m[2].lower()]), m.end()


def _whole(text: str, pos: int) -> tuple[Fraction, int] | None:
    """Return a whole number, with the part after it ("two and a half")."""
    total, group, end = 0, 0, pos
    m = _WORD.match(text, pos)
    while m is not None:
        word, end = m.group().lower(), m.end()
        if word in _VALUES:
            if not _may_follow(group, _VALUES[word]):
                return None
            group += _VALUES[word]
        elif word == "hundred":
            group = max(group, 1) * 100
        else:
            total, group = total + max(group, 1) * _SCALES[word], 0
        if (join := _JOIN.match(text, end)) is None:
            break
        if (part := _part(text, join.end())) is not None:
            return (total + group + part[0], part[1]) if "and" in join.group().lower() else None
        m = _WORD.match(text, join.end())
    return (Fraction(total + group), end) if end > pos else None


def _may_follow(group: int, value: int) -> bool:
    """Return whether a word goes on a number, as "four" on twenty does, and on nineteen does not."""
    return group % 100 == 0 or (group % 10 == 0 and group % 100 != 10 and 0 < value < 10)


def _chinese(text: str, pos: int) -> tuple[Fraction, int] | None:
    m = _CHINESE.match(text, pos)
    ends = _CLAUSE_ENDS.match(text, m.end()) if m else None
    if m is None or ends is None:
        return None
    value = Fraction(_of_chinese(m[2]))
    if m[1]:
        under = _of_chinese(m[1])
        if under == 0:
            return None
        value /= under
    return (-value if m.group().startswith("负") else value), ends.end(1)


def _of_chinese(numeral: str) -> int:
    """Return the value of a Chinese numeral: digits in places (二〇二四), or with 十, 百, 千, 万 and 亿."""
    if not any(sign in "十百千万亿" for sign in numeral):
        return int("".join(str(_DIGITS[sign]) for sign in numeral))
    total, section, digit = 0, 0, 0
    for sign in numeral:
        if sign in _DIGITS:
            digit = _DIGITS[sign]
        elif sign in _TIMES:
            section, digit = section + max(digit, 1) * _TIMES[sign], 0
        else:
            scale = 10**4 if sign == "万" else 10**8
            total, section, digit = (total + max(section + digit, 1)) * scale, 0, 0
    return total + section + digit
