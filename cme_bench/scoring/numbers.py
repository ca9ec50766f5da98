"""Numeric answers: the number a worked solution ends in, and when two numbers are the same."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from cme_bench.scoring.extraction import NOTHING, Extraction

# 1,234.50 or 1234.5 or .5; a minus belongs to it unless it stands behind a digit ("16-3")
_NUMBER = r"(?<![\d.])(?:(?<![\w)])-\s?)?[$€£]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<![\d.])\.\d+"
_MARKED = re.compile(rf"####\s*({_NUMBER})")
_BOXED = re.compile(rf"\\boxed\{{\s*\\?({_NUMBER})")
_ANSWER_IS = re.compile(rf"\banswer\b(?:\s+is\b)?[\s:=*$]*({_NUMBER})", re.IGNORECASE)
_ANY = re.compile(_NUMBER)


def extract_number(response: str) -> Extraction:
    """The number that ``response`` answers with, as plain digits.

    Rules: ``hash_mark`` (the first "#### N", GSM8K's own mark), ``boxed`` (the last ``\\boxed{N}``),
    ``answer_is`` (the last "answer is N"), ``last_number``.
    """
    if m := _MARKED.search(response):
        return Extraction(_plain(m.group(1)), "hash_mark")
    for pattern, rule in ((_BOXED, "boxed"), (_ANSWER_IS, "answer_is")):
        if found := pattern.findall(response):
            return Extraction(_plain(found[-1]), rule)
    if found := _ANY.findall(response):
        return Extraction(_plain(found[-1]), "last_number")
    return NOTHING


def same_number(answer: str, reference: str) -> float:
    """1.0 if both texts are numbers of the same value ("7.50" and "7.5", "1,000" and "1000")."""
    try:
        return float(Decimal(_plain(answer)) == Decimal(_plain(reference)))
    except InvalidOperation:
        return 0.0


def _plain(number: str) -> str:
    return re.sub(r"[,\s$€£]", "", number)
