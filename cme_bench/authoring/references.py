"""Read labels and accepted answers: every row has one, and it can be scored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, cast

import regex

from cme_bench.authoring.columns import in_one_spelling
from cme_bench.authoring.guessing import MOST_LABELS, writes_list
from cme_bench.authoring.new_options import Told
from cme_bench.authoring.options import text_of_values
from cme_bench.authoring.table_files import Table
from cme_bench.scoring.references import decimal_problem, reference_problem
from cme_bench.tasks.values import as_text, is_blank
from cme_bench.util.errors import UsageError

_SAYS = regex.compile(r"[\p{L}\p{N}\p{S}]")
"""What a label has that says something, as "-" or "?" has not."""
_SEPARATORS = (";", "|", " / ", " or ", "\n")
_SEVERAL = frozenset("answers references labels".split())
"""Names of columns that hold several answers a row."""
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?:\.\d{3})+")
_ENTITY = re.compile(r"&#?\w+;")
_JUDGES = frozenset("correct is_correct right is_right score votes points".split())
_OPTION_MARKS = frozenset("label key letter marker mark option aid option_label".split())
"""What a mapping holds beside its text if it is one of several options, not an accepted answer."""
_READ_AS = {"qa": "short", "number": "number", "math": "math", "summary": "summary"}


def label_values(table: Table, answer: str) -> list[Any]:
    """Return the distinct values of a label column, sorted.

    Raises UsageError for too many, or for a row without one.
    """
    first_rows: dict[Any, int] = {}
    for index, row in enumerate(table.rows):
        value = row[answer]
        if is_blank(value) or isinstance(value, list | dict):
            raise UsageError(f"{table.place(index)}: {answer} {value!r} is no label")
        first_rows.setdefault(as_label(value), index)
        if len(first_rows) > MOST_LABELS:
            raise UsageError(f"{table.place(index)}: {answer} has more than {MOST_LABELS} different labels")
    return sorted(first_rows, key=lambda v: (str(type(v)), _sortable(v)))


def as_label(value: Any) -> Any:
    """Return a text without the blanks around it, by which no answer can tell labels apart."""
    return value.strip() if isinstance(value, str) else value


def _sortable(value: Any) -> tuple[int, Any]:
    """Return a key that sorts numbers by size, also where a CSV holds them as texts."""
    text = as_text(value)
    return (0, float(text)) if re.fullmatch(r"-?\d+(?:\.\d+)?", text) else (1, text)


def label_names(table: Table, answer: str, values: Sequence[Any], told: Told) -> tuple[str, ...]:
    known = (table.label_names or {}).get(answer)
    if told.labels:
        if len(told.labels) != len(values):
            names = ", ".join(map(as_text, values))
            raise UsageError(f"--labels: {len(told.labels)} names for {len(values)} values ({names})")
        return told.labels
    if known and all(isinstance(value, int) and 0 <= value < len(known) for value in values):
        return tuple(known[value] for value in values)
    if not all(
        isinstance(value, str) and _sortable(value)[0] != 0 and _SAYS.search(value) for value in values
    ):
        names = ", ".join(map(as_text, values))
        raise UsageError(
            f"{table.origin}: name the labels {names} in this order with --labels NAME,NAME,... "
            "(or say --type number, if they are numbers)"
        )
    return tuple(values)


def label_variants(values: Sequence[Any]) -> list[str]:
    """Return a warning if labels differ by case or blanks only: they are probably one."""
    seen: dict[str, str] = {}
    twins = []
    for value in values:
        text = as_text(value)
        other = seen.setdefault(" ".join(text.lower().split()), text)
        if other != text:
            twins.append(f"{other!r} and {text!r}")
    return [f"warning: labels differ by case or blanks only: {', '.join(twins)}"] if twins else []


def read_references(table: Table, kind: str, answer: str, told: Told) -> tuple[tuple[str, ...], ...]:
    """Return the accepted answers of every row.

    Raises UsageError, with the row's place, for a row without one, and for one that cannot be scored as
    ``kind``.
    """
    references = tuple(_references(table, index, answer, told) for index in range(len(table.rows)))
    _check_references(table, kind, references, told.decimal)
    return references


def _references(table: Table, index: int, answer: str, told: Told) -> tuple[str, ...]:
    """Return the accepted answers of a row; UsageError if there is none."""
    value = table.rows[index][answer]
    listed = not table.typed or in_one_spelling(answer) in _SEVERAL
    if isinstance(value, str) and listed and told.way not in ("text", "list"):
        _refuse_written_list(table, answer)
    if isinstance(value, str) and told.kind == "qa" and not told.separator and told.way != "text":
        _refuse_parted(table, answer)
    if isinstance(value, str) and told.way == "list":
        try:
            value = text_of_values(value)
        except ValueError as error:
            raise UsageError(f"{table.place(index)}: {answer}: {error}") from error
    if isinstance(value, list) and len(value) > 1 and not told.way and in_one_spelling(answer) == "labels":
        raise UsageError(
            f"{table.place(index)}: {answer} {value!r} are several labels of one row, and a task has one "
            "(leave such rows out, or say --answer-is list if each of them is accepted)"
        )
    if isinstance(value, str) and told.separator:
        value = value.split(told.separator)
    try:
        texts = [text.strip() for text in _accepted(value)]
    except ValueError as error:
        raise UsageError(f"{table.place(index)}: {answer}: {error}") from error
    references = tuple(dict.fromkeys(text for text in texts if text))
    if not references:
        raise UsageError(f"{table.place(index)}: there is no answer in {answer}")
    return references


def _refuse_written_list(table: Table, answer: str) -> None:
    """Refuse a column in which every text writes a list: it may be several answers, or one that looks so."""
    if all(writes_list(value) for value in table.values(answer)):
        raise UsageError(
            f"{table.origin}: every {answer} is written as a list or mapping ({table.rows[0][answer]!r}); "
            "say --answer-is list (each part is accepted) or --answer-is text (the text itself is)"
        )


def _refuse_parted(table: Table, answer: str) -> None:
    """Refuse a column in which every text is parted by one sign: it may be several answers, or one."""
    texts = [as_text(value) for value in table.values(answer)]
    for sign in _SEPARATORS:
        if len(texts) > 2 and all(_parts(_ENTITY.sub("", text), sign) > 1 for text in texts):
            told = "$'\\n'" if sign == "\n" else f"'{sign}'"
            raise UsageError(
                f"{table.origin}: every {answer} has {sign!r} ({texts[0]!r}); say --separator {told} (each "
                "part is accepted) or --answer-is text (the text itself is)"
            )


def _parts(text: str, sign: str) -> int:
    return sum(bool(part.strip()) for part in text.split(sign))


def _accepted(value: Any) -> list[str]:
    if isinstance(value, dict):
        keys = [key for key in ("value", "text", "texts", "aliases", "answer", "answers") if key in value]
        if not keys:
            raise ValueError(f"a mapping of {', '.join(value)}; give a plain column")
        judged = [key for key, inner in value.items() if isinstance(inner, bool) or key.lower() in _JUDGES]
        if judged:
            raise ValueError(f"{judged[0]!r} says which answers are right; give a column of the right ones")
        if marks := [key for key in value if key.lower() in _OPTION_MARKS]:
            raise ValueError(
                f"{marks[0]!r} seems to name options; say --choices with this column and --answer with the "
                "one that says which is right, or give a plain column of answers"
            )
        return [text for key in keys for text in _accepted(value[key])]
    if isinstance(value, list):
        return [text for each in value for text in _accepted(each)]
    return [as_text(value)]


def _check_references(table: Table, kind: str, references: Sequence[tuple[str, ...]], decimal: str) -> None:
    """Check that every row has an answer that can be read as what the task asks for."""
    mark = cast('Literal["comma", "point"]', decimal) if decimal else None
    for index, accepted in enumerate(references):
        problems = [reference_problem(_READ_AS[kind], text, mark) for text in accepted]
        if all(problems):
            hint = "; say another --type" if kind in ("number", "math") else ""
            raise UsageError(f"{table.place(index)}: {problems[0]}{hint}")
    texts = [text for accepted in references for text in accepted]
    if kind == "number" and (decimal_problem(texts, mark) or (mark is None and _all_thousands(texts))):
        raise UsageError(
            f"{table.origin}: numbers with a comma or a point can be read in two ways; say --decimal comma "
            "or --decimal point"
        )


def _all_thousands(texts: Sequence[str]) -> bool:
    """Return whether every number with a point may be one of thousands ("1.250"), and there are several."""
    parted = [text for text in texts if "." in text]
    return len(set(parted)) > 1 and all(_THOUSANDS.fullmatch(text) for text in parted)
