"""Refuse answers that were guessed to be of one kind and may well be of another."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cme_bench.authoring.columns import FEW_ROWS, in_one_spelling, is_text, named, words
from cme_bench.authoring.guessing import LABELS, MOST_LABELS, SUMMARIES, SUMMARY_WORDS, writes_list
from cme_bench.authoring.table_files import Table
from cme_bench.tasks.values import as_text, is_blank
from cme_bench.util.errors import UsageError

_LETTERS = frozenset("ABCDEF") | frozenset("abcdef")
_AROUND_LETTERS = "()[].: "
_ASKED = "question query instruction problem".split()
"""Columns beside which a long answer is no summary."""
_LONGER = 2
"""A text has at least so many times the words of its summary."""


@dataclass(frozen=True, slots=True)
class _Answers:
    """The column of answers, guessed to be of one ``kind``. ``values``: what is there; ``texts``: the same as
    texts, each out of its list if that holds one."""

    table: Table
    name: str
    kind: str
    values: Sequence[Any]
    texts: Sequence[str]

    @property
    def distinct(self) -> list[str]:
        return sorted(set(self.texts))

    @property
    def called(self) -> str:
        return in_one_spelling(self.name)


def refuse_other_kinds(table: Table, answer: str, kind: str) -> None:
    """Raise UsageError, with the flag that decides, if answers that were guessed to be of one ``kind`` may
    well be of another."""
    values = [value for value in table.values(answer) if not is_blank(value)]
    bare = [v[0] if isinstance(v, list) and len(v) == 1 else v for v in values]
    answers = _Answers(table, answer, kind, values, [as_text(value).strip() for value in bare])
    for check in _CHECKS.get(kind, ()):
        if message := check(answers):
            raise UsageError(f"{table.origin}: {message}")


def _written_lists(answers: _Answers) -> str:
    if not all(isinstance(value, str) and writes_list(value) for value in answers.values):
        return ""
    return (
        f"every {answers.name} is written as a list or mapping ({answers.texts[0]!r}); write the label "
        "itself, or say --type label if it is the label"
    )


def _one_label(answers: _Answers) -> str:
    if len(answers.distinct) > 1 or len(answers.texts) < FEW_ROWS:
        return ""
    return f"{answers.name} is {answers.texts[0]!r} in every row: there is nothing to choose between"


def _letters(answers: _Answers) -> str:
    distinct = answers.distinct
    bare = {text.strip(_AROUND_LETTERS) for text in distinct}
    if answers.called in LABELS or len(distinct) < 2 or not bare <= _LETTERS:
        return ""
    return (
        f"the answers are letters ({', '.join(distinct)}), but no column holds options; name them with "
        f"--choices, or say --type {answers.kind} if they stand in the question"
    )


def _joined(answers: _Answers) -> str:
    joined = next((text for text in answers.distinct if _joins(text, answers.distinct)), "")
    return joined and (
        f"{answers.name} {joined!r} joins other labels, and a row has one: leave such rows out, or say "
        "--type label if it is a label of its own"
    )


def _joins(text: str, labels: Sequence[str]) -> bool:
    """Return whether a label is a list of other labels ("anger, joy")."""
    parts = [part.strip() for part in re.split(r"[,;|/]", text)]
    return len(parts) > 1 and all(part in labels for part in parts)


def _labels(answers: _Answers) -> str:
    if answers.called not in LABELS or any(isinstance(value, list) for value in answers.values):
        return ""
    count = len(answers.distinct)
    label = "--type label to ask for one of them, or " if count <= MOST_LABELS else ""
    rows = len(answers.texts)
    return f"{answers.name} has {count} different values in {rows} rows; say {label}--type {answers.kind}"


def _listed_summaries(answers: _Answers) -> str:
    several = any(isinstance(value, list) and len(value) > 1 for value in answers.values)
    if answers.called not in SUMMARIES or not several:
        return ""
    return (
        f"{answers.name} are lists of texts: say --type summary if each is a summary of its own, or join the "
        "sentences of one"
    )


def _long(answers: _Answers) -> str:
    """Refuse texts of many words that answer a question, or are about as long as what is shown."""
    texts = [each for v in answers.values for each in (v if isinstance(v, list) else [v])]
    table = Table([{"text": text} for text in texts if isinstance(text, str)] or [{"text": ""}], "")
    mean = words(table, "text")
    if mean < SUMMARY_WORDS or (answers.kind == "summary" and _is_summary(answers, mean)):
        return ""
    if all(isinstance(value, str) and writes_list(value) for value in answers.values):
        return ""  # which says --answer-is
    return (
        f"{answers.name} has {mean:.0f} words in the mean: say --type summary if texts like it are asked for "
        "(by ROUGE; --instruction says what is asked), or --type qa if it must be met word for word"
    )


def _is_summary(answers: _Answers, mean: float) -> bool:
    if answers.called in SUMMARIES:
        return True
    table = answers.table
    longest = max(
        (words(table, c) for c in table.columns if c != answers.name and is_text(table, c)), default=0
    )
    return longest >= _LONGER * mean and not [c for c in named(table, _ASKED) if c != answers.name]


_CHECKS: Mapping[str, Sequence[Callable[[_Answers], str]]] = {
    "label": (_written_lists, _one_label, _letters, _joined),
    "qa": (_listed_summaries, _long, _letters, _labels),
    "number": (_labels,),
    "summary": (_long,),
}
"""What is looked for in answers of a kind; the first that is found is said."""
