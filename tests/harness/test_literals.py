"""Literals read sooner are those of Python's own module, errors included."""

from __future__ import annotations

import ast
import gc
import re
from typing import Any

import pytest
from lm_eval.api import task

from cme_bench.harness.literals import keep_literals_quick, literal

TEXTS = [
    *("0", "7", "12", "007", "-1", "1.5", "1_000", "²", "٣", " 3", "", " ", "\n1", "9" * 5000),
    *("[]", "['a', 'b']", "  [\"it's\", '\\n\\u00e9\\ud800']", "['a' 'b', 'c']", "['a', 1]", "['a', ['b']]"),
    *("['a', b'c']", "['a', None]", "['a', f'{1}']", "['a', b]", "['a'", "['a'] + ['b']", "[*['a']]"),
    *("('a', 'b')", "{'a': 1}", "'a'", "None", "x", "f()", "['\0']", "[" * 300 + "]" * 300),
]


def found(read: Any, text: str) -> tuple[Any, ...]:
    try:
        value = read(text)
    except Exception as error:
        return type(error), re.sub("0x[0-9a-f]+", "", str(error))
    return type(value), repr(value)


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_a_literal_is_pythons(number: int) -> None:
    text = TEXTS[number]
    assert found(literal, text) == found(ast.literal_eval, text)


def test_lm_evals_tasks_read_by_it_and_leave_no_garbage() -> None:
    keep_literals_quick()
    keep_literals_quick()
    gc.collect()
    assert [task.ast.literal_eval(text) for text in ("3", "['a', 'b']")] == [3, ["a", "b"]]
    assert gc.collect() == 0
    assert ast.literal_eval("(1, 'a')") == task.ast.literal_eval("(1, 'a')") == (1, "a")
