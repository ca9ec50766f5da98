"""Columns of lists and mappings, which no prompt shows as they are: texts that a question may need."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from cme_bench.authoring.columns import (
    CONTEXTS,
    PROSE_WORDS,
    QUESTIONS,
    STRONG_ANSWERS,
    WEAK_ANSWERS,
    in_one_spelling,
    named_role,
)
from cme_bench.authoring.table_files import Table
from cme_bench.tasks.values import as_text, is_blank
from cme_bench.util.errors import UsageError

_READ = frozenset((*CONTEXTS, *QUESTIONS, "history", "turn", "chunk", "premises", "dialogue", "paragraph"))
"""Names of what is read, in the singular or as they are."""
_NOT_READ = re.compile(r"answer|option|choice|distractor|response|completion|label|target|embedding|token")
"""Parts of names of columns that say what is right, wrong or measured."""


def is_nested(table: Table, name: str) -> bool:
    """Return whether a column holds lists or mappings."""
    return any(isinstance(value, list | dict) and value for value in table.values(name))


def read_columns(table: Table, taken: Sequence[str], shown: Sequence[str]) -> list[str]:
    """Return the columns of lists or mappings that may be part of the question.

    Not what stands in columns that are ``shown`` or ``taken``, and no lists of words that describe a row.
    """
    return [
        name
        for name in table.columns
        if name not in (*taken, *shown) and is_nested(table, name) and _is_read(table, name, (*taken, *shown))
    ]


def refuse_nested(table: Table, names: Sequence[str], shown: Sequence[str]) -> None:
    """Raise UsageError for columns of lists or mappings that may be part of the question."""
    held = ", ".join(f"{name} ({_form(table, name)})" for name in names)
    leave = f", or say --question {','.join(shown)} to leave them out" if shown else ""
    raise UsageError(
        f"{table.origin}: {held} may be part of the question, and no prompt shows lists or mappings: write "
        f"their texts as columns{leave}"
    )


def nested_hint(table: Table) -> str:
    """Return a hint that columns hold lists or mappings, for rows without an answer; empty if none do."""
    held = [f"{name} ({_form(table, name)})" for name in table.columns if is_nested(table, name)]
    return f"; write what is inside {', '.join(held)} as columns" if held else ""


def joined_text(value: Any) -> str:
    """Return a value that is shown as one text: a list of texts as lines.

    ValueError for a mapping, and for a list of anything but texts and numbers.
    """
    if isinstance(value, list) and not any(isinstance(each, list | dict) for each in value):
        return "\n".join(as_text(each) for each in value if not is_blank(each))
    if isinstance(value, list | dict):
        kind = "a mapping" if isinstance(value, dict) else "a list of lists or mappings"
        raise ValueError(f"{kind} is no text to show; write its texts as columns")
    return as_text(value)


def _form(table: Table, name: str) -> str:
    value = next(value for value in table.values(name) if isinstance(value, list | dict) and value)
    inner = value if isinstance(value, dict) else next((v for v in value if isinstance(v, dict)), None)
    kind = "mapping" if isinstance(value, dict) else "list of mappings" if inner else "list"
    return f"{kind} of {', '.join(list(inner)[:4])}" if inner else kind


def _is_read(table: Table, name: str, others: Sequence[str]) -> bool:
    spelled = in_one_spelling(name)
    if named_role(name) or spelled in (*STRONG_ANSWERS, *WEAK_ANSWERS) or _NOT_READ.search(spelled):
        return False
    rows = [list(_texts(value)) for value in table.values(name)]
    texts = [text for row in rows for text in row]
    prose = sum(len(text.split()) for text in texts) >= PROSE_WORDS * max(1, len(texts))
    if not ({spelled, spelled.removesuffix("s")} & _READ or (texts and prose)):
        return False
    return not all(_stands_in(row, table, index, others) for index, row in enumerate(rows))


def _stands_in(texts: Sequence[str], table: Table, index: int, others: Sequence[str]) -> bool:
    """Return whether all prose of a row's texts stands in its other columns (a question as a chat)."""
    whole = " ".join(" ".join(_texts(table.rows[index][other])) for other in others).lower()
    prose = [text for text in texts if len(text.split()) >= PROSE_WORDS] or texts
    return all(text.strip().lower() in whole for text in prose)


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a value, however deep."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
    elif isinstance(value, str) and value.strip():
        yield value
