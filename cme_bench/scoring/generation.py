"""Scoring one generated response: extract the answer, then compare it with the gold answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from cme_bench.scoring import metrics
from cme_bench.scoring.extraction import (
    Extraction,
    extract_label,
    extract_letter,
    extract_short_answer,
    extract_text,
)
from cme_bench.scoring.item_metrics import metrics_of
from cme_bench.scoring.llm_adapters import first_choice, last_number, near, stated_choice
from cme_bench.scoring.macro_f1 import NO_ANSWER
from cme_bench.scoring.maths import extract_math, same_math
from cme_bench.scoring.numbers import found_number
from cme_bench.scoring.numerals import Decimal, same_value
from cme_bench.scoring.references import read_number_reference, read_reference

AnswerType: TypeAlias = Literal[
    "label", "letter", "short", "summary", "number", "math", "first_choice", "last_number"
]
ANSWER_TYPES: tuple[str, ...] = get_args(AnswerType)

GENERATE_UNTIL = "generate_until"
"""lm-eval's output type of tasks whose answers are texts."""

_OWN: dict[str, tuple[str, ...]] = {
    "label": ("acc", "f1_macro"),
    "letter": ("acc",),
    "number": ("acc",),
    "math": ("acc",),
    "first_choice": ("acc", "acc_stated"),
    "last_number": ("acc", "acc_stated"),
}
"""By answer type, what finding the answer scores by itself."""
METRICS: dict[str, tuple[str, ...]] = {
    type_: (*_OWN.get(type_, ()), *(one.name for one in metrics_of(type_))) for type_ in ANSWER_TYPES
}
"""Metrics of each answer type; the first stands for the task unless it declares another."""


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """The right answer of an item, and how it may be written.

    ``label``, ``letter`` and ``first_choice``: ``choices`` are the label words or letters, ``gold`` the index
    of the right one, ``options`` the texts behind the letters. The others: ``references`` are the accepted
    texts, read as :mod:`cme_bench.scoring.references` says. ``decimal``: how
    "1,234" is read in a number task; by default as thousands.
    """

    type: AnswerType
    choices: Sequence[str] = ()
    gold: int = -1
    options: Sequence[str] = ()
    references: Sequence[str] = ()
    decimal: Decimal | None = None


@dataclass(frozen=True, slots=True)
class ScoredText:
    """``scores``: a number a metric; of ``f1_macro``, which only many items have, this item's pair of (right
    class, answered class)."""

    scores: dict[str, float | list[int]]
    answer: Extraction


def score_text(response: str, gold: GoldAnswer) -> ScoredText:
    """Return metrics by answer type: ``label`` acc, f1_macro; ``letter``, ``number`` and ``math`` acc; and
    those that are registered: ``short`` em, f1; ``summary`` rouge_l, _1, _2. ``first_choice`` and
    ``last_number`` are LLM-Adapters' rules (acc), with our own beside them (acc_stated).

    ``answered`` is 1.0 where some rule found an answer: 1 - mean(answered) is the share of empty extractions.
    """
    scores: dict[str, float | list[int]]
    match gold.type:
        case "label":
            answer = extract_label(response, gold.choices)
            found = NO_ANSWER if answer.choice is None else answer.choice
            scores = {"acc": float(found == gold.gold), "f1_macro": [gold.gold, found]}
        case "letter":
            answer = extract_letter(response, gold.choices, gold.options)
            scores = {"acc": float(answer.choice == gold.gold)}
        case "short":
            answer = extract_short_answer(response)
            scores = {}
        case "summary":
            answer = extract_text(response)
            scores = {}
        case "number":
            answer, right = _number(response, gold)
            scores = {"acc": float(right)}
        case "math":
            answer = extract_math(response)
            expected = [read for ref in gold.references if (read := read_reference("math", ref)) is not None]
            scores = {"acc": max((same_math(answer.text, read.text) for read in expected), default=0.0)}
        case "first_choice":
            answer = first_choice(response, gold.choices)
            stated = stated_choice(response, gold.choices)
            scores = {
                "acc": float(answer.choice == gold.gold),
                "acc_stated": float(stated.choice == gold.gold),
            }
        case "last_number":
            found_last, answer = last_number(response)
            numbers = (read_number_reference(reference)[0] for reference in gold.references)
            right = any(near(found_last, float(number.value)) for number in numbers if number is not None)
            scores = {"acc": float(right), "acc_stated": float(_number(response, gold)[1])}
    accepted = _accepted(gold, answer.text)
    scores |= {one.name: one.formula(answer.text, accepted) for one in metrics_of(gold.type)}
    scores["answered"] = float(answer.rule != "none")
    return ScoredText(scores, answer)


def _accepted(gold: GoldAnswer, answer: str) -> Sequence[str]:
    """Return the texts that are right: the references, or the right one of the choices."""
    if gold.type == "short" and not answer:
        return ()  # nothing equals no reference, not even "The"
    return gold.references or gold.choices[gold.gold :][:1]


def _number(response: str, gold: GoldAnswer) -> tuple[Extraction, bool]:
    """Extract the number that was answered, and say whether it is one of the references.

    A reference that is no number (a run refuses it, stock lm-eval does not) is met by its own words alone.
    """
    number, answer = found_number(response, gold.decimal)
    for reference in gold.references:
        expected, _ = read_number_reference(reference, gold.decimal)
        if expected is None:
            extraction = extract_short_answer(response)
            if extraction.text and metrics.exact_match(extraction.text, [reference]):
                return extraction, True
        elif number is not None and same_value(number, expected):
            return answer, True
    return answer, False
