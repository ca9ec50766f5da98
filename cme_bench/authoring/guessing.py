"""Guess the parts of a task from names and values: answer, options, kind, question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cme_bench.authoring.columns import (
    CONTEXTS,
    LISTS_OF_OPTIONS,
    OPTION_COLUMNS,
    PROSE_WORDS,
    QUESTIONS,
    RIVALS,
    STRONG_ANSWERS,
    WEAK_ANSWERS,
    WRONG_OPTIONS,
    holds_answer,
    in_one_spelling,
    is_part,
    is_text,
    named,
    named_role,
    role,
    words,
)
from cme_bench.authoring.golds import read_golds
from cme_bench.authoring.nested import nested_hint, read_columns, refuse_nested
from cme_bench.authoring.new_options import Told
from cme_bench.authoring.options import row_options, text_of_values
from cme_bench.authoring.table_files import Table
from cme_bench.scoring.references import read_number_reference
from cme_bench.tasks.values import as_text, is_blank
from cme_bench.util.errors import UsageError

MOST_LABELS = 20
SUMMARY_WORDS = 12
"""Answers of so many words in the mean are texts, not short answers."""
LABELS = frozenset("label labels class category intent".split())
"""Names of columns of labels, and of summaries."""
SUMMARIES = frozenset("summary highlights tldr abstract".split())
_LATEX = re.compile(r"\\[a-zA-Z]+|\^|_\{|\$.+\$")


def guess_answer(table: Table, told: Told) -> str:
    """Return the one column whose name says that it is the answer; UsageError if none or several do."""
    taken = {*told.question, *told.choices}
    strong = [name for name in named(table, STRONG_ANSWERS) if name not in taken]
    weak = [name for name in named(table, WEAK_ANSWERS) if name not in taken]
    candidates = strong or weak
    if [in_one_spelling(name) for name in candidates] == ["target"]:  # of a stance, say
        candidates += [name for name in named(table, RIVALS) if name not in (*taken, *candidates)]
    if not candidates:
        for name in table.unread:
            if in_one_spelling(name) in (*STRONG_ANSWERS, *WEAK_ANSWERS):
                raise UsageError(table.unread[name])
        columns = ", ".join(table.columns)
        raise UsageError(
            f"{table.origin}: no column of the answer among {columns}; name it with --answer"
            f"{nested_hint(table)}"
        )
    if len(candidates) == 1 or _say_the_same(table, candidates):
        return candidates[0]
    raise UsageError(
        f"{table.origin}: {' and '.join(candidates)} could each be the answer; say "
        f"--answer {' or --answer '.join(candidates)}"
    )


def _say_the_same(table: Table, names: Sequence[str]) -> bool:
    """Return whether several answer columns name the same options in every row."""
    choices = guess_choices(table, names[0])
    if not choices or set(choices) & set(names):
        return False
    options = row_options(table, choices)
    try:
        return len({read_golds(table, name, options).index for name in names}) == 1
    except UsageError:
        return False


def guess_choices(table: Table, answer: str) -> tuple[str, ...]:
    """Return the column of all options, or one column an option; none if rows have no options."""
    for name in named(table, LISTS_OF_OPTIONS):
        if name == answer:
            continue
        if all(writes_list(value) for value in table.values(name)):
            return (name,)
        row = next(i for i, value in enumerate(table.values(name)) if not writes_list(value))
        raise UsageError(
            f"{table.place(row)}: {name} {table.rows[row][name]!r} is no list of options (write it as a JSON "
            "list, or say --type qa, label, ... to ask without options)"
        )
    for pattern in OPTION_COLUMNS:
        found = [c for c in table.columns if c != answer and re.fullmatch(pattern, c, re.IGNORECASE)]
        # an empty one keeps its place, since answers may count it
        if sum(not all(map(is_blank, table.values(c))) for c in found) >= 2:
            return tuple(found)
    wrong = [c for c in table.columns if re.fullmatch(WRONG_OPTIONS, in_one_spelling(c)) and c != answer]
    wrong = [c for c in wrong if not all(map(is_blank, table.values(c)))]
    if wrong:
        every = ",".join([*wrong, answer])
        raise UsageError(
            f"{table.origin}: {', '.join(wrong)} hold wrong options; say --type choice --choices {every} "
            f"--answer {answer} --answer-is text, or --type qa to ask without options"
        )
    return ()


def writes_list(value: Any) -> bool:
    """Return whether a value is a list or mapping, or a text that writes one."""
    if isinstance(value, str):
        try:
            return bool(text_of_values(value))
        except ValueError:
            return False
    return isinstance(value, list | dict) and bool(value)


def guess_kind(table: Table, answer: str, choices: Sequence[str], told: Told) -> str:
    """Return the kind of task that the answers look like."""
    if told.labels:
        return "label"
    if choices:
        return "choice"
    values = [value for value in table.values(answer) if not is_blank(value)]
    if any(isinstance(value, list | dict) for value in values):
        _refuse_listed_labels(table, answer, values)
        return "qa"
    return _kind_of_texts(table, answer, [as_text(value).strip() for value in values])


def _refuse_listed_labels(table: Table, answer: str, values: Sequence[Any]) -> None:
    """Refuse labels that each stand in a list: they may be one label a row, or accepted words."""
    if in_one_spelling(answer) in LABELS and all(isinstance(v, list) and len(v) == 1 for v in values):
        raise UsageError(
            f"{table.origin}: every {answer} is a list of one ({values[0]!r}); write the label itself, or "
            "say --type qa if answers in other words are right too"
        )


def _kind_of_texts(table: Table, answer: str, texts: Sequence[str]) -> str:
    """Return the kind of answers that are single texts or numbers."""
    if sum("####" in text for text in texts) > len(texts) / 2:
        return "number"
    if sum(bool(_LATEX.search(text)) for text in texts) > len(texts) / 5:
        return "math"
    if answer.lower() in SUMMARIES or words(table, answer) >= SUMMARY_WORDS:
        return "summary"
    if len(set(texts)) <= min(MOST_LABELS, max(2, len(texts) // 2)):
        return "label"
    if in_one_spelling(answer) in LABELS and 2 * len(set(texts)) <= len(texts):
        many = len(set(texts))
        raise UsageError(
            f"{table.origin}: {answer} has {many} different labels, and a label task {MOST_LABELS} at most; "
            "say --type qa to ask for the words"
        )
    plain_numbers = all(read_number_reference(text)[1] == "number" for text in texts)
    return "number" if plain_numbers else "qa"


def guess_question(
    table: Table, answer: str, choices: Sequence[str], *, seen: bool = False
) -> tuple[str, ...]:
    """Return contexts, then the other texts in the file's order: both of a pair, never one alone. Where an
    image is ``seen``, there may be none.

    Raises UsageError where a text of unknown name may or may not be part of the question.
    """
    left = [c for c in table.columns if c not in (answer, *choices) and is_text(table, c)]
    left = [
        c for c in left if not holds_answer(table, c, answer, [o for o in left if role(table, o) != "id"])
    ]
    contexts = [c for c in named(table, CONTEXTS) if c in left and not _is_heading(table, c)]
    known = [c for c in named(table, QUESTIONS) if c in left and not _is_remark(table, c)]
    known = [
        c for c in known if not is_part(table, c, [o for o in left if o != c and not is_part(table, o, [c])])
    ]
    shown = list(dict.fromkeys([*contexts, *sorted(known, key=table.columns.index)]))
    open_ = [c for c in left if c not in shown and not role(table, c) and not is_part(table, c, shown)]
    open_ = [c for c in open_ if c not in named(table, (*STRONG_ANSWERS, *WEAK_ANSWERS))]
    if nested := read_columns(table, (answer, *choices), [*shown, *open_]):
        refuse_nested(table, nested, [*shown, *open_])
    if not shown and (len(open_) == 1 or (seen and not open_)):
        return tuple(open_)
    if open_ or not shown:
        candidates = [*shown, *open_] or left
        if not candidates:
            raise UsageError(f"{table.origin}: no column of texts; name the question with --question")
        raise UsageError(
            f"{table.origin}: say which columns are shown, in their order: --question {','.join(candidates)}"
            f" ({', '.join(open_ or candidates)} may or may not be part of the question)"
        )
    return tuple(shown)


def _is_remark(table: Table, name: str) -> bool:
    """Return whether a column describes rows in a few words ("source: BBC"), and is no text to read."""
    return named_role(name) == "describes" and words(table, name) < PROSE_WORDS


def _is_heading(table: Table, name: str) -> bool:
    """Return whether a title is a name (SQuAD's articles) and no sentence to read."""
    return name.lower() in ("title", "headline") and words(table, name) < PROSE_WORDS
