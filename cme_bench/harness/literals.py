"""Python literals as lm-eval reads them from rendered templates, without what ``ast`` makes for each.

lm-eval 0.4.13 calls ``ast.literal_eval`` for the label and the choices of every row. Each call makes four
functions that refer to each other, which only a search for garbage frees.
"""

from __future__ import annotations

import ast
from typing import Any

from lm_eval.api import task

_DIGITS = 18
"""Longer numbers are left to Python, which refuses some."""


def keep_literals_quick() -> None:
    """Make lm-eval's tasks of this process read literals by ``literal``; asked again, nothing changes."""
    task.ast = _Ast


class _Ast:
    """Stand in for the module ``ast``, of which lm-eval's tasks use one function."""

    @staticmethod
    def literal_eval(text: str) -> Any:
        """Return what the module's function does."""
        return literal(text)


def literal(text: str) -> Any:
    """Return what ``ast.literal_eval`` does, or raise as it does; numbers and lists of texts come sooner."""
    if len(text) <= _DIGITS and text.isascii() and text.isdigit() and (text[0] != "0" or len(text) == 1):
        return int(text)
    tree = ast.parse(text.lstrip(" \t"), mode="eval")
    body = tree.body
    if type(body) is ast.List and all(map(_is_text, body.elts)):
        return [node.value for node in body.elts]  # type: ignore[attr-defined]  # constants, as was seen
    return ast.literal_eval(tree)


def _is_text(node: ast.expr) -> bool:
    return type(node) is ast.Constant and type(node.value) is str
