"""What a new task asks: columns of the rows, guessed from their names and values where nobody says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cme_bench.errors import UsageError, did_you_mean
from cme_bench.tasks.row_files import Rows

KINDS = {
    "choice": "one of several options that stand in the row",
    "label": "one of a few fixed labels",
    "qa": "a few words, one or several accepted",
    "number": "a number",
    "summary": "a text, scored by ROUGE",
}
MOST_LABELS = 20
SUMMARY_WORDS = 12
"""Answers of so many words in the mean are texts, not short answers."""

_ANSWERS = (
    "answer answers label target gold correct answerkey answer_key correct_answer solution summary output "
    "class category sentiment"
).split()
_QUESTIONS = (
    "question query prompt text sentence input instruction problem stem dialogue document article post"
).split()
_CONTEXTS = "context passage background premise document article".split()
_CHOICES = "choices options endings candidates alternatives".split()
_COLUMN_SETS = [r"[a-j]", r"(?:option|choice|opt|ending|answer)[ _]?[a-j0-9]"]


@dataclass(frozen=True, slots=True)
class Draft:
    """What a new task asks. ``question``: the columns shown, in order; ``choices``: the column of a list of
    options, or one column an option; ``labels``: names of the label column's sorted values; ``separator``:
    what parts several references in one text."""

    kind: str
    question: tuple[str, ...]
    answer: str
    choices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    instruction: str = ""
    separator: str = ""
    form: str = "likelihood"


def guess(rows: Rows, *, answer: str = "", choices: tuple[str, ...] = ()) -> Draft:
    """What the columns seem to be, by their names and values; ``answer`` and ``choices`` where known.

    UsageError if no column looks like an answer.
    """
    columns = list(rows.table.column_names)
    first = rows.table[: min(len(rows.table), 1000)]
    lower = {name.lower(): name for name in columns}
    answer = answer or next((lower[name] for name in _ANSWERS if name in lower), "")
    if answer not in columns:
        hint = did_you_mean(answer, columns) if answer else "; name it with --answer"
        raise UsageError(f"{rows.origin}: no column of the answer among {', '.join(columns)}{hint}")
    choices = choices or _guess_choices(columns, first, answer)
    left = [c for c in columns if c not in (answer, *choices) and _is_text(first[c])]
    contexts = [lower[name] for name in _CONTEXTS if name in lower and lower[name] in left]
    questions = [lower[name] for name in _QUESTIONS if name in lower and lower[name] in left]
    shown = tuple(dict.fromkeys([*contexts[:1], *questions[:1]])) or tuple(left[:1])
    return Draft(_guess_kind(first[answer], answer, choices), shown, answer, choices)


def _guess_choices(
    columns: Sequence[str], first: Mapping[str, Sequence[Any]], answer: str
) -> tuple[str, ...]:
    for name in columns:
        value = first[name][0]
        texts = value.get("text") if isinstance(value, dict) else value
        if name.lower() in _CHOICES and isinstance(texts, list):
            return (name,)
    for pattern in _COLUMN_SETS:
        found = [c for c in columns if c != answer and re.fullmatch(pattern, c, re.IGNORECASE)]
        if len(found) >= 2:
            return tuple(found)
    return ()


def _guess_kind(values: Sequence[Any], answer: str, choices: Sequence[str]) -> str:
    if choices:
        return "choice"
    if any(isinstance(value, list | dict) for value in values):
        return "qa"
    texts = [str(value) for value in values]
    if answer.lower() == "summary" or sum(len(t.split()) for t in texts) / len(texts) >= SUMMARY_WORDS:
        return "number" if sum("####" in t for t in texts) > len(texts) / 2 else "summary"
    if len(set(texts)) <= min(MOST_LABELS, max(2, len(texts) // 2)):
        return "label"
    if all(re.fullmatch(r"-?[\d,.]+", text.strip()) for text in texts):
        return "number"
    return "qa"


def _is_text(values: Sequence[Any]) -> bool:
    return any(isinstance(value, str) and value.strip() for value in values)


def label_values(rows: Rows, answer: str) -> list[Any]:
    """The distinct values of a label column, sorted. UsageError for too many, or for one that is missing."""
    found: dict[Any, int] = {}
    for index, row in enumerate(rows.table):
        value = row[answer]
        if value is None or value == "" or isinstance(value, list | dict):
            raise UsageError(f"{rows.place(index)}: {answer} {value!r} is no label")
        found.setdefault(value, index)
        if len(found) > MOST_LABELS:
            raise UsageError(f"{rows.place(index)}: {answer} has more than {MOST_LABELS} different labels")
    return sorted(found, key=lambda v: (str(type(v)), v))
