"""Guess what a new task asks from its columns; refuse what can be read in two ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from cme_bench.authoring.columns import (
    CONTEXTS,
    QUESTIONS,
    STRONG_ANSWERS,
    WEAK_ANSWERS,
    holds_answer,
    in_one_spelling,
    is_part,
    is_text,
    named,
    role,
)
from cme_bench.authoring.draft import KINDS, Draft
from cme_bench.authoring.golds import read_golds
from cme_bench.authoring.guessing import (
    guess_answer,
    guess_choices,
    guess_kind,
    guess_question,
)
from cme_bench.authoring.new_options import Told
from cme_bench.authoring.options import row_options
from cme_bench.authoring.other_kinds import refuse_other_kinds
from cme_bench.authoring.references import label_names, label_values, label_variants, read_references
from cme_bench.authoring.table_files import Table
from cme_bench.tasks.values import is_blank
from cme_bench.util.errors import UsageError, did_you_mean

T = TypeVar("T")
_WAY_NAMES = {
    "text": "its text",
    "key": "its key",
    "letter": "a letter",
    "index0": "its place, counted from 0",
    "index1": "its place, counted from 1",
}


def guess(table: Table, told: Told | None = None, *, seen: bool = False) -> Draft:
    """Return what the rows seem to ask, by names and values, where ``told`` does not say it. ``seen``: they
    have images, and need no question beside.

    Raises UsageError for a column or kind that is not there, and where the rows can be read in two ways: its
    line names the option that decides.
    """
    told = told or Told()
    _check_told(table, told)
    answer = told.answer or guess_answer(table, told)
    choices = told.choices or (() if _no_choices(told) else guess_choices(table, answer))
    kind = told.kind or guess_kind(table, answer, choices, told)
    if kind != "choice":
        choices = ()
    elif not choices:
        raise UsageError(f"{table.origin}: name the column, or columns, of the options with --choices")
    shown = told.question or guess_question(table, answer, choices, seen=seen)
    if not seen:
        _check_shown(table, shown)
    if not told.kind and not told.labels:
        refuse_other_kinds(table, answer, kind)
    told = replace(told, kind=kind, question=shown, answer=answer, choices=choices)
    return _with_unused(table, _read(table, told))


def suggest(table: Table, told: Told) -> Told:
    """Return the best guess of each part for a terminal, which asks; what cannot be guessed stays empty."""

    def tried(act: Callable[[], T], otherwise: T) -> T:
        try:
            return act()
        except UsageError:
            return otherwise

    named_ones = named(table, (*STRONG_ANSWERS, *WEAK_ANSWERS))
    answer = told.answer or tried(lambda: guess_answer(table, told), (named_ones or [""])[0])
    if not answer:
        return told
    choices = told.choices or tried(lambda: guess_choices(table, answer), ())
    kind = told.kind or tried(lambda: guess_kind(table, answer, choices, told), "qa")
    texts = [c for c in table.columns if c not in (answer, *choices) and is_text(table, c)]
    usual = [c for c in texts if c in named(table, (*CONTEXTS, *QUESTIONS))] or texts
    question = told.question or tried(lambda: guess_question(table, answer, choices), tuple(usual))
    return replace(told, kind=kind, answer=answer, choices=choices, question=question)


def _no_choices(told: Told) -> bool:
    return bool(told.labels) or (told.kind not in ("", "choice"))


def _check_told(table: Table, told: Told) -> None:
    """Check that kinds and columns are known; a flag that goes with another kind is refused, never
    ignored."""
    if told.kind and told.kind not in KINDS:
        raise UsageError(
            f"unknown type {told.kind!r}{did_you_mean(told.kind, KINDS)} (one of {', '.join(KINDS)})"
        )
    if told.answer and told.answer not in table.columns:
        columns = ", ".join(table.columns)
        hint = did_you_mean(told.answer, table.columns)
        raise UsageError(f"{table.origin}: no column of the answer among {columns}{hint}")
    for name in (*told.question, *told.choices):
        if name not in table.columns:
            raise UsageError(f"{table.origin}: no column {name!r}{did_you_mean(name, table.columns)}")
    for flag, value, kinds in (
        ("--labels", told.labels, ("label",)),
        ("--choices", told.choices, ("choice",)),
        ("--separator", told.separator, ("qa", "number", "math", "summary")),
        ("--decimal", told.decimal, ("number",)),
    ):
        if value and told.kind and told.kind not in kinds:
            raise UsageError(f"{flag} goes with --type {' or '.join(kinds)}, not with {told.kind}")
    if told.labels and told.choices:
        raise UsageError("--labels is for rows without options, --choices for rows with them: give one")


def _check_shown(table: Table, shown: tuple[str, ...]) -> None:
    """Check that every row shows more than its passage: without its question nobody can answer it."""
    asked = [name for name in shown if in_one_spelling(name) not in CONTEXTS] or shown
    for index, row in enumerate(table.rows):
        if all(is_blank(row[name]) for name in asked):
            raise UsageError(f"{table.place(index)}: there is no question in {', '.join(asked)}")


def _read(table: Table, told: Told) -> Draft:
    """Return the draft with every row's options, gold or references; ``told`` is complete."""
    kind, shown, answer, choices = told.kind, told.question, told.answer, told.choices
    if kind == "choice":
        options = row_options(table, choices)
        golds = read_golds(table, answer, options, told.way)
        notes = (golds.note or f"the answer names its option by {_WAY_NAMES[golds.way]}",)
        return Draft(kind, shown, answer, choices, tuple(options), golds.index, notes=notes, way=golds.way)
    if kind == "label":
        values = label_values(table, answer)
        return Draft(
            kind, shown, answer, values=tuple(values), labels=label_names(table, answer, values, told)
        )
    references = read_references(table, kind, answer, told)
    return Draft(
        kind,
        shown,
        answer,
        references=references,
        way=told.way,
        separator=told.separator,
        decimal=told.decimal,
    )


def _with_unused(table: Table, draft: Draft) -> Draft:
    """Return the draft with the columns that are in no place, and why."""
    texts = [name for name in table.columns if is_text(table, name) and role(table, name) != "id"]
    reasons = {"id": "names the row", "describes": "describes the row", "gives away": "gives the answer away"}
    unused = {}
    for name in table.columns:
        if name in (draft.answer, *draft.question, *draft.choices):
            continue
        if all(map(is_blank, table.values(name))):
            continue
        part = is_text(table, name) and is_part(table, name, draft.question)
        other = name in named(table, STRONG_ANSWERS)
        given = is_text(table, name) and holds_answer(table, name, draft.answer, texts)
        kind = "gives away" if given else role(table, name)
        reason = "answers otherwise" if other else reasons.get(kind, "")
        unused[name] = "stands in what is shown" if part else reason
    notes = (*draft.notes, *label_variants(draft.values))
    return replace(draft, unused=unused, notes=notes)
