"""Reading what a task gives as right answers: stricter than a response, since it decides every score.

``tasks check`` and a run ask :func:`reference_problem` of every row before anything is answered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cme_bench.scoring.answer import Extraction
from cme_bench.scoring.maths import extract_math
from cme_bench.scoring.metrics import normalize_answer
from cme_bench.scoring.numbers import found_number
from cme_bench.scoring.numerals import Decimal, Number, flat, read_number, tokens
from cme_bench.scoring.text import fold, words

_UNIT = re.compile(r"\s*[(]?[^\W\d_][^\d\n]{0,40}[)]?|\s*[°€£¥%]\w?")
_AMBIGUOUS = re.compile(r"(?<![\d.,])[-+]?[1-9]\d{0,2}([.,])\d{3}(?![\d.,])")
_COMMA_DECIMALS = re.compile(
    r"(?<![\d.,])[-+]?(?:\d+,\d{1,2}|\d+,\d{4,}|0,\d+|\d{1,3}(?:\.\d{3})+,\d+)(?![\d.,])"
)
_POINT_DECIMALS = re.compile(
    r"(?<![\d.,])[-+]?(?:\d+\.\d{1,2}|\d+\.\d{4,}|0\.\d+|\d{1,3}(?:,\d{3})+\.\d+)(?![\d.,])"
)


def read_number_reference(reference: str, decimal: Decimal | None = None) -> tuple[Number | None, str]:
    """Return the number that a reference is and the rule that read it; (None, "none") if it is no number.

    Rules: ``number`` (nothing else, but for currency or percent), ``hash_mark`` (a worked solution that ends
    in "#### N"), ``boxed`` and ``answer_is`` as in responses, ``unit`` (a number and a few words).
    """
    text = fold(reference).strip()
    if "####" in text:
        marked = read_number(text.rpartition("####")[2].rstrip("."), decimal)
        return (marked, "hash_mark") if marked is not None else (None, "none")
    if (number := read_number(text, decimal)) is not None:
        return number, "number"
    number, extraction = found_number(text, decimal)
    if extraction.rule in ("boxed", "answer_is"):
        return number, extraction.rule
    shown = flat(text)
    held = tokens(shown, decimal)
    alone = len(held) == 1 and held[0].kind == "number" and held[0].start == 0
    return (held[0].number, "unit") if alone and _UNIT.fullmatch(shown, held[0].end) else (None, "none")


def read_reference(kind: str, reference: str, decimal: Decimal | None = None) -> Extraction | None:
    """Return how an accepted text of a ``number``, ``math``, ``short`` or ``summary`` task is read.

    None if it cannot be: then nothing could ever be right. ``rule`` names how it was read.
    """
    if kind == "number":
        number, rule = read_number_reference(reference, decimal)
        return None if number is None else Extraction(str(number), rule)
    if kind == "math":
        return _math_reference(reference)
    if kind == "summary":
        return Extraction(reference.strip(), "text") if words(reference) else None
    return Extraction(reference.strip(), "text") if normalize_answer(reference) else None


def _math_reference(reference: str) -> Extraction | None:
    text = reference.strip()
    if "\\boxed" in text or "\\fbox" in text:
        extraction = extract_math(text)
        return extraction if extraction.rule == "boxed" else None
    prose = len(re.findall(r"[^\W\d_]{2,}", re.sub(r"\\[A-Za-z]+", "", text))) > 6
    return None if not text or prose or "\n" in text else Extraction(text, "text")


def reference_problem(kind: str, reference: str, decimal: Decimal | None = None) -> str | None:
    """Return why an accepted text cannot be scored as ``kind``, as the end of a sentence; None if it can."""
    if read_reference(kind, reference, decimal) is not None:
        return None
    shown = repr(reference if len(reference) <= 60 else reference[:57] + "...")
    if not reference.strip():
        return "the right answer is empty"
    if kind == "number":
        return (
            f"the right answer {shown} is no plain number: "
            "use answer type 'math' for expressions, 'short' for texts"
        )
    if kind == "math":
        return (
            f"the right answer {shown} is a text, no expression: use answer type 'short' or mark it \\boxed"
        )
    return f"the right answer {shown} has no words"


def decimal_problem(references: Iterable[str], decimal: Decimal | None = None) -> str | None:
    """Return why a task's references leave open what "1,234" or "1.234" is; None if they do not.

    That is so if one of them can be read in two ways and others write decimals with a comma. ``decimal`` in
    ``metadata.answer`` decides it.
    """
    if decimal is not None:
        return None
    open_, comma, point = "", "", ""
    for reference in references:
        text = flat(fold(reference.rpartition("####")[2]))
        if m := _AMBIGUOUS.search(text):
            open_ = open_ or m.group()
        elif m := _COMMA_DECIMALS.search(text):
            comma = comma or m.group()
        elif m := _POINT_DECIMALS.search(text):
            point = point or m.group()
    if comma and point:
        return (
            f"right answers write decimals both as {comma!r} and as {point!r}: "
            "add 'decimal: comma' or 'decimal: point' to metadata.answer"
        )
    if comma and open_:
        return (
            f"the right answer {open_!r} may be thousands or decimals, as {comma!r} has a decimal comma: "
            "add 'decimal: comma' or 'decimal: point' to metadata.answer"
        )
    return None
