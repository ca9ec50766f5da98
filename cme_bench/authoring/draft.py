"""Hold what a new task asks, and what the user said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cme_bench.authoring.options import Options

KINDS = {
    "choice": "one of several options that stand in the row",
    "label": "one of a few fixed labels",
    "qa": "a few words, one or several accepted",
    "number": "a number",
    "math": "a mathematical expression",
    "summary": "a text, scored by ROUGE",
}


@dataclass(frozen=True, slots=True)
class Draft:
    """The question and answers of a new task.

    ``question``: the columns shown, in order; ``choices``: the column of all options, or one column an
    option; ``options`` and ``golds``: what they are in every row of a choice task; ``way``: how answers name
    them; ``labels``: names of the label column's ``values``; ``references``: accepted answers of every row;
    ``unused``: columns that are in no place, each with the reason; ``notes``: how the rows are read.
    """

    kind: str
    question: tuple[str, ...]
    answer: str
    choices: tuple[str, ...] = ()
    options: tuple[Options, ...] = ()
    golds: tuple[int, ...] = ()
    values: tuple[Any, ...] = ()
    labels: tuple[str, ...] = ()
    references: tuple[tuple[str, ...], ...] = ()
    unused: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    way: str = ""
    separator: str = ""
    decimal: str = ""
