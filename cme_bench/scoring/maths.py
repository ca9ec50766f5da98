"""Mathematical answers: the expression a response ends in, and when two expressions are the same.

Numbers are compared exactly by :mod:`cme_bench.scoring.numerals`; other expressions by math-verify (sympy).
That runs in a process of its own: some expressions take for ever, and its own time limit is a signal, which
interrupts no long operation and works in no other thread.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import selectors
import subprocess
import sys
import threading
from pathlib import Path

import orjson

from cme_bench.scoring.answer import NOTHING, Extraction
from cme_bench.scoring.claims import ANSWER, UNDECIDED, Undecided, claims, until_next_question
from cme_bench.scoring.markup import last_box, plain, unwrapped
from cme_bench.scoring.maths_signs import in_signs_of_latex, listed, told_apart, without_units
from cme_bench.scoring.number_words import number_word
from cme_bench.scoring.numbers import extract_number
from cme_bench.scoring.numerals import Number, read_number, same_value
from cme_bench.scoring.short import first_sentence
from cme_bench.scoring.text import fold
from cme_bench.scoring.thinking import without_thinking

LIMIT = 20.0
"""Seconds for one comparison; one that takes longer counts as different."""
_MOST_CHARACTERS = 300
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|(?<!\\)\$([^$\n]+?)(?<!\\)\$|\\\((.+?)\\\)", re.DOTALL)
_LIST_NEXT = re.compile(r"\s*(?:,|or|and|/)\s*(?:or\s+|and\s+)?(?=\$|\\\()")
_VARIABLE = re.compile(r"^[A-Za-z]\s*(?:=|\\in)\s*(?=[^=])")
_DENIED = re.compile(r"\b(?:not|n't|neither|either|unknown|impossible)\b|n't\b", re.IGNORECASE)
_FEW_WORDS = re.compile(r"(?!\w+\s+not\b)[A-Za-z]{3,}|[Nn]o(?:t|ne)?(?: [a-z]+){1,2}|[A-Za-z]{3,} [a-z]{3,}")
_STRUCTURED = re.compile(r"[a-z({\\[]")
_SPACING = re.compile(r"\\[,;:! ]|~|\\left|\\right|\\displaystyle|\\quad|\\qquad|\s+|\$|\\\(|\\\)|\\\[|\\\]")
_ENDLESS = re.compile(
    r"\^\s*(?:\{[^{}]*|\([^()]*|[A-Za-z0-9]+\s*)\^|\^\s*\{?\s*-?\d{4,}|\d{3,}\s*!|!\s*!|\d{60,}"
)
_MODULUS = re.compile(r"\s*(?:\\pmod\s*\{?\w+\}?|\\bmod\s*\w+|\(\s*(?:\\text\{\s*)?mod\b[^()]*\))$")


def extract_math(response: str) -> Extraction:
    """Find the expression that ``response`` ends in.

    Rules, the first that decides: ``boxed`` (the last ``\\\\boxed{...}``), ``answer_is`` (the last "the
    answer is ..."), ``last_formula`` (between the last signs of mathematics), ``few_words`` (no more than
    three of them: "No solution"), ``last_number``.
    """
    text = until_next_question(without_thinking(response))
    if (boxed := last_box(fold(text))) is not None:
        return Extraction(boxed, "boxed") if boxed else NOTHING
    claimed = _claimed(text)
    if isinstance(claimed, Undecided):
        return NOTHING
    if claimed:
        return Extraction(claimed, "answer_is")
    formulas = [_content(m) for m in _FORMULA.finditer(fold(text))]
    if formulas:
        return Extraction(formulas[-1], "last_formula")
    words = plain(text).strip().rstrip(".")
    return Extraction(words, "few_words") if _FEW_WORDS.fullmatch(words) else extract_number(text)


def _claimed(text: str) -> str | Undecided:
    shown = plain(text, mathematics=True)
    for claim in reversed(claims(shown, ANSWER)):
        rest = shown[claim.end :].lstrip(" :*")
        line = next((line.strip() for line in rest.splitlines() if line.strip()), "")
        if not line:
            continue
        if claim.stance != "says" or _DENIED.match(line):
            return UNDECIDED
        m = _FORMULA.match(line)
        if m is None:
            return _plain_expression(line)
        return UNDECIDED if _LIST_NEXT.match(line, m.end()) else _content(m)
    return ""


def _plain_expression(line: str) -> str:
    """Return an expression that stands without signs of mathematics: its number, if it is one."""
    sentence = first_sentence(line).rstrip(" .。*")
    number = extract_number(f"answer: {sentence}")
    if number.text and not re.match(r"[(\[{]|[^\d]*[\d.]+\s*[/^*+]", sentence):
        return number.text
    return sentence


def _content(m: re.Match[str]) -> str:
    return next(part for part in m.groups() if part is not None).strip()


def same_math(answer: str, reference: str) -> float:
    """Return 1.0 if two expressions are the same: in writing, as numbers, or by math-verify."""
    answer, reference = without_units(*_without_modulus(_latex(answer), _latex(reference)))
    a, b = _tidy(answer), _tidy(reference)
    if not a or not b or told_apart(unwrapped(answer).strip(" $"), unwrapped(reference).strip(" $")):
        return 0.0
    if a == b:
        return 1.0
    if ("=" in a) != ("=" in b) or ("\\in " in a) != ("\\in " in b):
        a, b = _VARIABLE.sub("", a), _VARIABLE.sub("", b)
    lists = listed(a), listed(b)
    if any(lists) and (all(lists) or not _STRUCTURED.search(a + b)):
        return float(sorted(lists[0]) == sorted(lists[1]))
    one, other = _number(a), _number(b)
    if one is not None and other is not None:
        return float(same_value(one, other))
    if _is_words(a) or _is_words(b) or _too_much(a) or _too_much(b):
        return float(_words(a) == _words(b))
    return float(_verified(a, b))


def _latex(expression: str) -> str:
    text = in_signs_of_latex(fold(expression).strip())
    return text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")


def _tidy(expression: str) -> str:
    """Return an expression without spaces of layout, wrappers and a full stop."""
    text = unwrapped(expression)
    return re.sub(r"\s+", " ", _SPACING.sub(" ", text)).strip().rstrip(".").strip()


def _without_modulus(a: str, b: str) -> tuple[str, str]:
    """Return both without "(mod 10)" at their end, where only one has it."""
    one, other = _MODULUS.sub("", a), _MODULUS.sub("", b)
    return (one, other) if (one == a) != (other == b) else (a, b)


def _number(text: str) -> Number | None:
    """Return the number that a text is, in digits with a unit or in words."""
    if (number := read_number(text) or read_number(_without_unit(text))) is not None:
        return number
    word = number_word(text.strip(), 0)
    return Number(word[0]) if word is not None and word[1] == len(text.strip()) else None


def _without_unit(text: str) -> str:
    return re.sub(r"(?<=[\d}])\s*[a-zA-Z]{2,}(?:\s?\^\s?\d)?$|\^\s*\{?\s*\\circ\s*\}?$", "", text)


def _is_words(text: str) -> bool:
    return not re.search(r"\d|\\|[=+*/^<>-]", text) and len(re.sub(r"[^A-Za-z]", "", text)) > 2


def _words(text: str) -> str:
    return re.sub(r"[\s{}]", "", text).casefold()


def _too_much(text: str) -> bool:
    return len(text) > _MOST_CHARACTERS or bool(_ENDLESS.search(text))


@functools.lru_cache(maxsize=1 << 16)
def _verified(answer: str, reference: str) -> bool:
    return _worker().same(answer, reference)


class _Worker:
    """A process that compares expressions, one line a pair; it is ended and replaced if it takes too long."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def same(self, answer: str, reference: str) -> bool:
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(orjson.dumps([reference, answer]) + b"\n")
                process.stdin.flush()
            except OSError:  # it died, as for want of memory
                self._end()
                return False
            with selectors.DefaultSelector() as ready:
                ready.register(process.stdout, selectors.EVENT_READ)
                reply = process.stdout.readline() if ready.select(LIMIT) else b""
            if not reply:
                self._end()
            return reply == b"1\n"

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            path = os.pathsep.join(filter(None, [_PACKAGE_PARENT, os.environ.get("PYTHONPATH")]))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cme_bench.scoring.maths_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is the parent's affair
            )
            self._process.stdout.readline()  # type: ignore[union-attr]  # a pipe; sympy is loaded now
        return self._process

    def _end(self) -> None:
        if self._process is not None and self.owner == os.getpid():
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End the process."""
        self._end()


_known: dict[int, _Worker] = {}


def _worker() -> _Worker:
    """Return this process's worker; a forked child makes its own."""
    return _known.setdefault(os.getpid(), _Worker()) if os.getpid() not in _known else _known[os.getpid()]
