"""Words and signs after digits that multiply them: thousand, 5k, lakh, Millionen, 万."""

from __future__ import annotations

import regex

_POWERS = {
    2: "hundred",
    3: "हज़ार हजार thousand tausend tsd тыс тысяч nghìn ngàn ribu",
    5: "lakh लाख",
    6: "million mn mio millionen millón millone milione milioni млн миллион миллиона миллионов "
    "triệu juta milyon",
    7: "crore करोड़",
    9: "billion bn mrd milliard milliarde milliarden млрд tỷ milyar",
    12: "trillion",
}
_WORDS = {word: 10**power for power, words in _POWERS.items() for word in words.split()}
_LETTERS = {"k": 10**3, "m": 10**6, "b": 10**9}
_SIGNS = dict(zip("百千万萬亿億만억", (10**2, 10**3, 10**4, 10**4, 10**8, 10**8, 10**4, 10**8), strict=True))

SCALES = _WORDS | _LETTERS | _SIGNS
"""What each multiplies by, in lower case."""
_LONGEST_FIRST = "|".join(sorted(_WORDS, key=len, reverse=True))
SCALE = regex.compile(
    rf"\s*({_LONGEST_FIRST})s?\b|(k|(?-i:[MB]))(?!\w)|\s*([{''.join(_SIGNS)}]+)",
    regex.IGNORECASE,
)
"""Groups: a word, a letter right behind the digits (5k, 1.2M; a small m is a metre), signs."""
MONEY_SCALE = regex.compile(r"[mb](?!\w)", regex.IGNORECASE)
"""A letter behind an amount of money: €3m."""
