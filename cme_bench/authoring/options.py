"""Options of rows, in the ways that people write them."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cme_bench.authoring.table_files import Table
from cme_bench.tasks.values import as_text, is_blank
from cme_bench.util.errors import UsageError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TEXT_KEYS = ("text", "content", "option", "option_text", "value", "answer", "choice", "body")
_KEY_KEYS = ("label", "key", "id", "letter", "marker", "mark", "option_label", "index", "name")
_LETTERED = re.compile(r"\s*\(?([A-Za-z]|\d{1,2})[).:]\s+(?=\S)|\s*\(?([A-Z])[).:]\s*(?=\S)")


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
    """Return one option a column; a column of a list (wrong answers beside the right one) holds several.

    ValueError for a mapping.
    """
    shared = _shared_prefix(columns)
    parts: list[tuple[Any, tuple[str, ...]]] = []
    for name in columns:
        value = row[name]
        if isinstance(value, Mapping) or (isinstance(value, list) and _holds_parts(value)):
            raise ValueError(f"{name} holds a mapping, and is no option")
        if isinstance(value, list):
            parts += [(each, ()) for each in value]
        else:
            parts.append((value, (name, name[len(shared) :])))
    return tuple(
        AnswerOption(as_text(value), place, keys)
        for place, (value, keys) in enumerate(parts)
        if not is_blank(value)
    )


def _holds_parts(value: list[Any]) -> bool:
    return any(isinstance(each, Mapping | list) for each in value)


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
    if _holds_parts(value):
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
    one, and a row's letters are the first ones; where they stand in another order, they are keys too."""
    stripped = [_bare(options) for options in every]
    return [options for options in stripped if options] if all(stripped) else list(every)


def _bare(options: Options) -> Options:
    """Return the options without their letters or numbers; empty where they do not name the options."""
    marks = [_LETTERED.match(option.text) for option in options]
    names = [(m[1] or m[2]).upper() if m else "" for m in marks]
    places = [option.place for option in options]
    for counted in (LETTERS, [str(i) for i in range(1, 100)]):
        own = [counted[place] if place < len(counted) else "" for place in places]
        if sorted(names) == sorted(own):
            return tuple(
                AnswerOption(
                    option.text[m.end() :],
                    option.place,
                    (*option.keys, option.text.strip(), *([] if names == own else [name])),
                )
                for option, m, name in zip(options, marks, names, strict=True)
                if m
            )
    return ()
