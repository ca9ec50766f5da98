"""Options and right answers of rows, in the ways that people write them."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cme_bench.authoring.table_files import Table
from cme_bench.tasks.values import as_text, is_blank
from cme_bench.util.errors import UsageError, did_you_mean

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ANSWER_WAYS = ("text", "key", "letter", "index0", "index1")
"""How an answer may name its option: its text, its key or column, a letter, its place from 0 or from 1."""
_TEXT_KEYS = ("text", "content", "option", "option_text", "value", "answer", "choice", "body")
_KEY_KEYS = ("label", "key", "id", "letter", "option_label", "index", "name")
_LETTERED = re.compile(r"\s*\(?([A-Z])[).:]\s*(?=\S)")


@dataclass(frozen=True, slots=True)
class AnswerOption:
    """One option of a row. ``place``: where it stands, blank ones counted; ``keys``: names it goes by."""

    text: str
    place: int
    keys: tuple[str, ...] = ()


Options = tuple[AnswerOption, ...]


def row_options(table: Table, columns: Sequence[str]) -> list[Options]:
    """Return every row's options, blank ones left out.

    ``columns``: one column that holds all options (a list, a list of objects, a mapping, or the text of one),
    or one column an option. Raises UsageError, with the row's place, where options cannot be read or are
    fewer than two.
    """
    read = _of_columns if len(columns) > 1 else _of_one_column
    every = []
    for index, row in enumerate(table.rows):
        try:
            options = read(row, columns)
        except ValueError as error:
            raise UsageError(f"{table.place(index)}: {columns[0]}: {error}") from error
        if len(options) < 2:
            what = "one option" if options else "no option"
            raise UsageError(f"{table.place(index)}: there is {what} in {', '.join(columns)}; two are needed")
        every.append(options)
    return _without_letters(every)


def _of_columns(row: Mapping[str, Any], columns: Sequence[str]) -> Options:
    shared = _shared_prefix(columns)
    return tuple(
        AnswerOption(as_text(row[name]), place, (name, name[len(shared) :]))
        for place, name in enumerate(columns)
        if not is_blank(row[name])
    )


def _shared_prefix(names: Sequence[str]) -> str:
    """Return the beginning that all names share: ``option`` of option1 and option2."""
    first, last = min(names), max(names)
    size = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return first[:size]


def _of_one_column(row: Mapping[str, Any], columns: Sequence[str]) -> Options:
    value = row[columns[0]]
    if isinstance(value, str):
        value = text_of_values(value)
    if isinstance(value, Mapping):
        return _of_mapping(value)
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list of options")
    if all(isinstance(each, Mapping) for each in value):
        return tuple(_of_object(each, place) for place, each in enumerate(value))
    if any(isinstance(each, Mapping | list) for each in value):
        raise ValueError("an option is a list or a mapping")
    return tuple(AnswerOption(as_text(each), place) for place, each in enumerate(value) if not is_blank(each))


def _of_mapping(value: Mapping[str, Any]) -> Options:
    """Return the options of ``{text: [...], label: [...]}`` as in ARC, or of ``{A: ..., B: ...}``."""
    texts = next((value[key] for key in (*_TEXT_KEYS, "texts") if isinstance(value.get(key), list)), None)
    if texts is None:
        if any(isinstance(each, Mapping | list) for each in value.values()):
            raise ValueError(f"the mapping of {', '.join(value)} is no set of options")
        items = enumerate(value.items())
        return tuple(AnswerOption(as_text(v), place, (key,)) for place, (key, v) in items if not is_blank(v))
    names: list[Any] = next((value[k] for k in (*_KEY_KEYS, "labels") if isinstance(value.get(k), list)), [])
    if names and len(names) != len(texts):
        raise ValueError(f"{len(texts)} texts, but {len(names)} labels")
    keys: list[tuple[str, ...]] = [(as_text(name),) for name in names] or [()] * len(texts)
    pairs = enumerate(zip(texts, keys, strict=True))
    return tuple(
        AnswerOption(as_text(text), place, key) for place, (text, key) in pairs if not is_blank(text)
    )


def _of_object(value: Mapping[str, Any], place: int) -> AnswerOption:
    text = next((value[key] for key in _TEXT_KEYS if not is_blank(value.get(key))), None)
    if text is None or isinstance(text, Mapping | list):
        raise ValueError(f"no text among {', '.join(value)} of an option")
    keys = tuple(as_text(value[key]) for key in _KEY_KEYS if not is_blank(value.get(key)))
    return AnswerOption(as_text(text), place, keys)


def text_of_values(text: str) -> Any:
    """Return the list or mapping that ``text`` writes, as JSON or as Python does; ValueError if it is none.

    ``['a' 'b']``, as numpy prints an array, is refused: Python reads it as one text. So is ``1,250``, which
    Python reads as two numbers.
    """
    if text.strip()[:1] not in ("[", "{", "("):
        raise ValueError(f"{text[:60]!r} is no list of options")
    try:
        value = json.loads(text)
    except ValueError:
        if _adjacent_texts(text):
            raise ValueError(f"{text[:60]!r} has no commas between its parts (numpy wrote it)") from None
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"{text[:60]!r} is no list of options") from None
    if isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, list | dict):
        raise ValueError(f"{text[:60]!r} is no list of options")
    return value


def _adjacent_texts(text: str) -> bool:
    try:
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    except (tokenize.TokenError, SyntaxError, IndentationError):
        return False
    return any(a == b == tokenize.STRING for a, b in pairwise(kinds))


def _without_letters(every: Sequence[Options]) -> list[Options]:
    """Return the options without the letters that they begin with, if every option of every row begins with
    its own."""

    def bare(option: AnswerOption) -> AnswerOption | None:
        letter = _LETTERED.match(option.text)
        if letter is None or letter[1] != LETTERS[option.place : option.place + 1]:
            return None
        return AnswerOption(option.text[letter.end() :], option.place, (*option.keys, option.text.strip()))

    stripped = [tuple(bare(option) for option in options) for options in every]
    if any(option is None for options in stripped for option in options):
        return list(every)
    return [tuple(option for option in options if option is not None) for options in stripped]


Way = Callable[[Options, Any], int | None]
"""(options, answer) -> index of the option that the answer names, or None."""


def _by_text(options: Options, answer: Any) -> int | None:
    wanted = as_text(answer).strip()
    matches = [i for i, option in enumerate(options) if option.text.strip() == wanted]
    return matches[0] if matches else None


def _by_key(options: Options, answer: Any) -> int | None:
    wanted = as_text(answer).strip()
    matches = [i for i, option in enumerate(options) if wanted in option.keys]
    if not matches:
        matches = [i for i, o in enumerate(options) if wanted.lower() in [key.lower() for key in o.keys]]
    return matches[0] if len(matches) == 1 else None


def _by_place(options: Options, place: int) -> int | None:
    return next((i for i, option in enumerate(options) if option.place == place), None)


def _by_letter(options: Options, answer: Any) -> int | None:
    letter = as_text(answer).strip().strip("().:").upper()
    return _by_place(options, LETTERS.index(letter)) if len(letter) == 1 and letter in LETTERS else None


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
    answers = table.values(column)
    fits: dict[str, tuple[int, ...]] = {}
    misfits: dict[str, int] = {}
    for name in [way] if way else ANSWER_WAYS:
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
