"""Marks around words (Markdown, LaTeX, HTML, JSON) taken away, so that rules see the words alone."""

from __future__ import annotations

import re

from cme_bench.scoring.text import fold

_STRUCK = re.compile(r"~~.*?~~|<(del|s|strike)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_ANSWER_TAG = re.compile(
    r"<(/?)(?:final[_ -]?)?(?:answer|ans|final|choice|label|option|response|output|"
    r"result|prediction|solution)>",
    re.IGNORECASE,
)
_TAG = re.compile(
    r"</?(?:b|i|u|em|strong|p|br|span|div|code|mark|center|font|h[1-6]|pre)(?:\s[^<>]*)?/?>", re.I
)
_COMMAND = (
    r"text|textbf|textit|textrm|textsf|texttt|mathbf|mathrm|mathit|mathsf|mathtt|mathcal|bm|boldsymbol|"
    r"operatorname|emph|mbox|hbox|underline"
)
_WRAPPED = re.compile(rf"\\(?:{_COMMAND})\*?\s*\{{([^{{}}]*)\}}")
_MATH = re.compile(r"\\[()\[\]]|(?<![\\A-Za-z])\$(?=\S)|(?<=\S)\$(?!\s?\d)")
_EMPHASIS = re.compile(
    r"(?<![A-Za-z0-9*])\*\*(?=\S)|(?<=[^\s*])\*\*(?![A-Za-z0-9*])|(?<![A-Za-z0-9_])__(?=[^\s_])|(?<=[^\s_])__(?!\w)|`+"
)
_STARRED = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]*[^\s*])\*(?![\w*])")

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_TWO_BOXES = re.compile(
    r"\}[\s$.]*(?:[,;+*/-]|or|and|或者?|和|oder|ou|o|y|или)[\s$]*\\(?:boxed|fbox)\s*\{(?![\s\S]*\\(?:boxed|fbox))"
)
"""What joins the last two boxes to one list."""


def plain(response: str, *, mathematics: bool = False) -> str:
    """Return ``response`` folded and without marks of emphasis, mathematics and HTML.

    ``mathematics``: keep the marks of mathematics. A tag such as ``<answer>`` becomes a line that begins
    with "answer:". What is struck out is gone.
    """
    text = _STRUCK.sub(" ", fold(response))
    if "`" in text:
        text = _FENCE.sub("", text)
    if "<" in text:
        text = _ANSWER_TAG.sub(lambda m: "\n" if m.group(1) else "\nanswer: ", text)
        text = _TAG.sub("", text)
    if not mathematics and ("$" in text or "\\" in text):
        text = _MATH.sub("", unwrapped(text))
    if "*" in text or "_" in text or "`" in text:
        text = _STARRED.sub(r"\1", _EMPHASIS.sub("", text))
    return text


def unwrapped(text: str) -> str:
    """Return ``text`` with the contents of ``\\text{...}``, ``\\mathbf{...}`` and the like in their place."""
    before = ""
    while before != text:
        before, text = text, _WRAPPED.sub(r"\1", text)
    return text


def boxes(text: str) -> list[str]:
    """Return what stands in each ``\\boxed{...}`` of ``text``, braces balanced, in order."""
    contents = []
    for mark in BOX.finditer(text):
        end = _closing_brace(text, mark.end())
        if end is not None:
            contents.append(text[mark.end() + 1 : end])
    return contents


def last_box(text: str) -> str | None:
    """Return what stands in the last box of ``text`` (folded), None if there is no box.

    It is empty where nothing is decided: the last box is cut off, or goes with another one that says
    something else ("\\boxed{4} or \\boxed{5}").
    """
    contents = boxes(text)
    cut = len(BOX.findall(text)) > len(contents)
    listed = len(contents) > 1 and contents[-1] != contents[-2] and _TWO_BOXES.search(text)
    return "" if cut or listed else contents[-1].strip() if contents else None


def _closing_brace(text: str, start: int) -> int | None:
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "\\":
            continue
        if text[index] in "{}" and text[index - 1] != "\\":
            depth += 1 if text[index] == "{" else -1
            if depth == 0:
                return index
    return None
