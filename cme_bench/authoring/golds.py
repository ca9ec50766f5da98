"""Which option of a row is right, in the ways that people write it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cme_bench.authoring.options import LETTERS, Options
from cme_bench.authoring.table_files import Table
from cme_bench.tasks.values import as_text, is_blank
from cme_bench.util.errors import UsageError, did_you_mean

ANSWER_WAYS = ("text", "key", "letter", "index0", "index1")
"""How an answer may name its option: its text, its key or column, a letter, its place from 0 or from 1."""
_LETTERED = re.compile(r"\s*[(\[]?([A-Za-z])[)\].:]+\s*(?P<text>\S.*)", re.DOTALL)
"""A letter before the option's own text."""

Way = Callable[[Options, Any], int | None]
"""(options, answer) -> index of the option that the answer names, or None."""


def _by_text(options: Options, answer: Any) -> int | None:
    wanted = as_text(answer).strip()
    texts = [option.text.strip() for option in options]
    if isinstance(answer, bool):  # True is written true, "True" or TRUE
        texts = [text.lower() for text in texts]
    return texts.index(wanted) if wanted in texts else None


def _by_key(options: Options, answer: Any) -> int | None:
    wanted = as_text(answer).strip()
    matches = [i for i, option in enumerate(options) if wanted in option.keys]
    if not matches:
        matches = [i for i, o in enumerate(options) if wanted.lower() in [key.lower() for key in o.keys]]
    return matches[0] if len(matches) == 1 else None


def _by_place(options: Options, place: int) -> int | None:
    return next((i for i, option in enumerate(options) if option.place == place), None)


def _by_letter(options: Options, answer: Any) -> int | None:
    """Return the option of a letter alone, or of one before the option's own text ("B. red")."""
    m = _LETTERED.fullmatch(as_text(answer))
    letter = (m[1] if m else as_text(answer).strip().strip("().:")).upper()
    if len(letter) != 1 or letter not in LETTERS:
        return None
    index = _by_place(options, LETTERS.index(letter))
    same = m is None or (index is not None and m["text"].strip() == options[index].text.strip())
    return index if same else None


def _number(answer: Any) -> int | None:
    text = as_text(answer).strip()
    if isinstance(answer, float) and answer.is_integer():
        return int(answer)
    return int(text.partition(".")[0]) if re.fullmatch(r"\d{1,3}(?:\.0)?", text, re.ASCII) else None


def _by_index(start: int) -> Way:
    def way(options: Options, answer: Any) -> int | None:
        number = None if isinstance(answer, bool) else _number(answer)
        return None if number is None else _by_place(options, number - start)

    return way


_WAYS: dict[str, Way] = {
    "text": _by_text,
    "key": _by_key,
    "letter": _by_letter,
    "index0": _by_index(0),
    "index1": _by_index(1),
}


@dataclass(frozen=True, slots=True)
class Golds:
    """The right option of every row, and the way in which the answers name it."""

    way: str
    index: tuple[int, ...]
    note: str = ""


def read_golds(table: Table, column: str, every: Sequence[Options], way: str = "") -> Golds:
    """Return which option is right in every row.

    ``way``: one of ANSWER_WAYS; where it is not told, the one way that fits all rows. Raises UsageError where
    none does, with the first row that does not fit, and where several do and say different options.
    """
    if way and way not in _WAYS:
        raise UsageError(f"--answer-is {way}: not one of {', '.join(_WAYS)}{did_you_mean(way, _WAYS)}")
    answers = _single(table, column)
    fits: dict[str, tuple[int, ...]] = {}
    misfits: dict[str, int] = {}
    for name in [way] if way else [each for each in ANSWER_WAYS if _counts_so(each, every)]:
        golds = [_WAYS[name](options, answer) for options, answer in zip(every, answers, strict=True)]
        if None in golds:
            misfits[name] = golds.index(None)
        else:
            fits[name] = tuple(index for index in golds if index is not None)
    if not fits:
        raise _no_way(table, column, every, max(misfits.values()))
    if len(set(fits.values())) == 1:
        return Golds(*next(iter(fits.items())))
    return _decide(table, column, fits)


_COUNTS = tuple([str(place) for place in range(start, start + 100)] for start in (0, 1))
"""Names of options that count them, from 0 and from 1."""


def _counts_so(way: str, every: Sequence[Options]) -> bool:
    """Return whether a letter or number may count the options: not where one is called as another place is
    (C, where B is left out)."""
    counts = {"letter": (LETTERS,), "index0": _COUNTS, "index1": _COUNTS}.get(way)
    return counts is None or all(any(_keys_follow(o, names) for names in counts) for o in every)


def _keys_follow(options: Options, names: Sequence[str]) -> bool:
    """Return whether no option is called by the name of another place ("C" where B is left out)."""
    return all(
        key == names[option.place]
        for option in options
        for key in (key.upper() for key in option.keys)
        if key in names and option.place < len(names)
    )


def _single(table: Table, column: str) -> list[Any]:
    """Return the answers, each out of its list if all are lists of one; UsageError for a list of several."""
    answers = table.values(column)
    if not any(isinstance(answer, list) for answer in answers):
        return answers
    for index, answer in enumerate(answers):
        if isinstance(answer, list) and len(answer) != 1:
            raise UsageError(
                f"{table.place(index)}: {column} {answer!r} names {len(answer)} options; a choice has one "
                "right one (leave such rows out, or say --type qa, where several texts may be right)"
            )
    return [answer[0] if isinstance(answer, list) else answer for answer in answers]


def _decide(table: Table, column: str, fits: Mapping[str, tuple[int, ...]]) -> Golds:
    """Decide between several ways: an answer that is a text and stands among the options is that option."""
    ways = list(fits)
    typed = any(not isinstance(value, str) for value in table.values(column))
    if "text" in fits and not typed and "key" not in fits:
        others = ", ".join(name for name in ways if name != "text")
        note = f"answers are read as the texts of options (--answer-is {others} would fit as well)"
        return Golds("text", fits["text"], note)
    if "key" in fits and "text" not in fits:
        return Golds("key", fits["key"])
    first, second = ways[0], next(name for name in ways if fits[name] != fits[ways[0]])
    row = next(i for i, (a, b) in enumerate(zip(fits[first], fits[second], strict=True)) if a != b)
    raise UsageError(
        f"{table.place(row)}: {column} {table.rows[row][column]!r} can be read as option "
        f"{fits[first][row] + 1} ({first}) or {fits[second][row] + 1} ({second}), in every row; say "
        f"--answer-is {' or --answer-is '.join(ways)}"
    )


def _no_way(table: Table, column: str, every: Sequence[Options], row: int) -> UsageError:
    answer = table.rows[row][column]
    texts = [option.text for option in every[row]]
    if is_blank(answer):
        return UsageError(f"{table.place(row)}: there is no answer in {column}")
    return UsageError(
        f"{table.place(row)}: the answer {answer!r} is none of the options {texts}: neither a text, nor a "
        "letter, nor a number of theirs"
    )
