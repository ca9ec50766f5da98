"""Numeric answers: the number a response answers with, and when two numbers are the same."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from fractions import Fraction

from cme_bench.scoring.answer import NOTHING, Extraction
from cme_bench.scoring.choices import LISTED
from cme_bench.scoring.claims import (
    ANSWER,
    UNDECIDED,
    Claim,
    Undecided,
    claims,
    until_next_question,
)
from cme_bench.scoring.markup import last_box, plain
from cme_bench.scoring.number_forms import (
    A_YEAR,
    ANOTHER,
    ANOTHER_HAS,
    ASKED,
    BOLD,
    CIRCUMSTANCE,
    CLAUSE_END,
    COMPOUND,
    DENIED,
    EQUALS,
    FRONT,
    INEXACT,
    JOINED,
    LABELLED,
    LIST_OF_BOLD,
    MARK,
    NEXT_STEP,
    NOT_BUT,
    ONE_UNIT,
    RANGE,
    RELATED,
    SECOND_CLAUSE,
    SPACED,
    STATED,
    TAKEN_BACK,
    VARIABLE,
)
from cme_bench.scoring.number_words import number_word
from cme_bench.scoring.numerals import Decimal, Number, Token, flat, read_number, same_value, tokens
from cme_bench.scoring.text import fold
from cme_bench.scoring.thinking import without_thinking

Found = Number | Undecided | None
_TERM = re.compile(r"\d\s*[-+*/]\s*\d")


def extract_number(response: str, decimal: Decimal | None = None) -> Extraction:
    """Find the number that ``response`` answers with, given as plain digits or a fraction.

    Rules, the first that decides: ``hash_mark`` (the first line that "#### N" ends, GSM8K's own mark),
    ``boxed`` (the last ``\\\\boxed{N}``), ``answer_is`` (the last "the answer is N"; of "2 + 3 = 5" the 5),
    ``bold`` (the last number set in bold), ``last_number`` (of the last sentence that has any). Two numbers
    ("5 or 7", "5 feet 7"), bounds, times, dates and terms such as "2x" are no answer.
    """
    return found_number(response, decimal)[1]


def same_number(answer: str, reference: str, decimal: Decimal | None = None) -> float:
    """Return 1.0 if both texts are numbers of the same value ("7.50" and "7.5", "1,000" and "1000")."""
    a, b = read_number(fold(answer), decimal), read_number(fold(reference), decimal)
    return float(a is not None and b is not None and same_value(a, b))


def found_number(response: str, decimal: Decimal | None = None) -> tuple[Number | None, Extraction]:
    """Return the number that :func:`extract_number` finds, with its percent sign, beside what it returns."""
    number, rule = _Reader(until_next_question(without_thinking(response)), decimal).read()
    return (number, Extraction(str(number), rule)) if isinstance(number, Number) else (None, NOTHING)


class _Reader:
    """Reads one text; each rule gives a number, Undecided (and no further rule is tried) or None."""

    def __init__(self, raw: str, decimal: Decimal | None) -> None:
        self.raw = fold(raw)
        self.decimal = decimal

    @functools.cached_property
    def text(self) -> str:
        return flat(plain(self.raw))

    @functools.cached_property
    def tokens(self) -> list[Token]:
        return tokens(self.text, self.decimal)

    @functools.cached_property
    def at(self) -> dict[int, int]:
        """Place in ``tokens`` by where the token starts."""
        return {token.start: index for index, token in enumerate(self.tokens)}

    def read(self) -> tuple[Found, str]:
        rules: tuple[tuple[str, Callable[[], Found]], ...] = (
            ("hash_mark", self._marked),
            ("boxed", self._boxed),
            ("answer_is", self._claimed),
            ("bold", self._bold),
            ("last_number", self._last),
        )
        for rule, find in rules:
            if (number := find()) is not None:
                return number, rule
        return None, "none"

    def _marked(self) -> Found:
        if "####" not in self.raw:
            return None
        numbers = [n for m in MARK.finditer(self.raw) if (n := _alone(m.group(1), self.decimal)) is not None]
        counted = [number.value for number in numbers] == list(range(1, len(numbers) + 1))
        return None if not numbers or (counted and len(numbers) > 1) else numbers[0]

    def _boxed(self) -> Found:
        if "boxed" not in self.raw and "fbox" not in self.raw:
            return None
        box = last_box(self.raw)
        return None if box is None else _whole(box, self.decimal)

    def _claimed(self) -> Found:
        last: Found = None
        for claim in claims(self.text, ANSWER):
            value = self._after(claim)
            if value is None or (claim.stance == "hedges" and isinstance(last, Number)):
                continue
            last = value if claim.stance == "says" else UNDECIDED
        return last

    def _bold(self) -> Found:
        bold = [
            (m, n)
            for m in BOLD.finditer(self.raw)
            if (n := _alone(m.group(1) or m.group(2), self.decimal)) is not None
        ]
        if len(bold) > 1:
            (before, first), (last, second) = bold[-2:]
            if first != second and LIST_OF_BOLD.fullmatch(self.raw, before.end(), last.start()):
                return UNDECIDED
        return bold[-1][1] if bold else None

    def _after(self, claim: Claim) -> Found:
        """Return what is claimed: the number in front, or the only one of the clause, or what it equals."""
        front = FRONT.match(self.text, claim.end)
        pos = front.end() if front else claim.end
        if (index := self.at.get(pos)) is not None:
            return self._value(index)
        if (word := self._word(claim.end, pos)) is not None:
            return UNDECIDED if ASKED.match(self.text, word[1]) else Number(word[0])
        end = m.start() if (m := CLAUSE_END.search(self.text, pos)) else len(self.text)
        inside = [i for i, token in enumerate(self.tokens) if pos <= token.start < end]
        if not inside:
            return None
        if any(words.search(self.text, pos, self.tokens[inside[-1]].start) for words in (INEXACT, RELATED)):
            return UNDECIDED
        equal = [i for i in inside if re.search(r"[=≈]\s*$", self.text[pos : self.tokens[i].start])]
        if equal or len(inside) == 1:
            return self._value((equal or inside)[-1])
        return UNDECIDED

    def _value(self, index: int) -> Found:
        """Return the number of token ``place``, of an equation the one after its last sign of equality."""
        right = self._next_after(index, EQUALS)
        if right is not None and (left := self._left_side(right)) is not None:
            return left
        end, equation = index, False
        while True:
            token = self.tokens[end]
            follow = self._next_after(end, EQUALS)
            if token.kind == "expression":
                joined = self._next_after(end, JOINED)
                if joined is None and follow is None:
                    return UNDECIDED
                equation = equation or joined is None
                end = follow if joined is None and follow is not None else joined or end
            elif follow is not None:
                end, equation = follow, True
            elif equation and (step := self._next_equation(end)) is not None:
                end = step
            else:
                break
        if (later := self._next_after(end, TAKEN_BACK)) is not None:
            return self._value(later)
        token = self.tokens[end]
        if token.number is None or (not equation and end != index) or self._several(end):
            return UNDECIDED
        return UNDECIDED if ASKED.match(self.text, token.end) else token.number

    def _next_equation(self, index: int) -> int | None:
        """Return the token that a further equation begins with ("..., 5 * 2 = 10")."""
        step = self._next_after(index, NEXT_STEP)
        return step if step is not None and self.tokens[step].kind == "expression" else None

    def _next_after(self, index: int, between: re.Pattern[str]) -> int | None:
        """Return the token that follows ``place`` with nothing but ``between`` before it."""
        m = between.match(self.text, self.tokens[index].end)
        return self.at.get(m.end()) if m else None

    def _several(self, index: int) -> bool:
        """Return whether another number goes with that of ``place`` ("5 or 7", "5 feet 7", "5 to 7")."""
        end = self.tokens[index].end
        listed = LISTED.match(self.text, end)
        if listed is not None and listed.end() in self.at:
            return True
        return any(
            self._next_after(index, pattern) is not None for pattern in (COMPOUND, RANGE, ANOTHER, SPACED)
        )

    def _last(self) -> Found:
        usable = [
            i for i, token in enumerate(self.tokens) if token.kind != "other" and not self._is_label(token)
        ]
        outside = [i for i in usable if not self._is_aside(self.tokens[i])] or usable
        if not outside:
            return self._words()
        if len(outside) > 1 and DENIED.fullmatch(
            self.text, self.tokens[outside[-2]].end, self.tokens[outside[-1]].start
        ):
            outside.pop()  # "42, not 43"
        last = outside[-1]
        start = self._sentence_start(last)
        equal = [
            i
            for i in outside
            if self.tokens[i].start >= start
            and re.search(r"(?<![<>!])[=≈]\s*$", self.text[start : self.tokens[i].start])
        ]
        if any(i > 0 and self._next_after(i - 1, ANOTHER) == i for i in (*equal[-1:], last)):
            return UNDECIDED
        if equal:
            return self._left_side(equal[-1]) or self._value(equal[-1])
        if (stated := self._stated(start, outside[-2:])) is not None:
            return stated
        before = self.text[max(start, self.tokens[last].start - 25) : self.tokens[last].start]
        doubted = (
            ASKED.match(self.text, self.tokens[last].end)
            or self._goes_with(outside[-2] if len(outside) > 1 else last - 1, last)
            or self.tokens[last].kind == "expression"
            or INEXACT.search(before)
        )
        return UNDECIDED if doubted else self.tokens[last].number

    def _stated(self, start: int, two: list[int]) -> Number | None:
        """Return the number that takes another's place ("not 11 but 12"), or a total before its circumstance
        ("The total is 12 after 7 days"); ``two``: the last tokens of the clause."""
        last = self.tokens[two[-1]]
        if last.kind != "number" or ASKED.match(self.text, last.end):
            return None
        if NOT_BUT.search(self.text[start : last.start]):
            return last.number
        total, m = self.tokens[two[0]], STATED.match(self.text, start)
        front = FRONT.match(self.text, m.end()) if m else None
        if front is None or front.end() != total.start or total.kind != "number" or len(two) == 1:
            return None
        return total.number if CIRCUMSTANCE.fullmatch(self.text, total.end, last.start) else None

    def _words(self) -> Found:
        """Return the number that words alone name ("forty-two apples"), where there is no digit."""
        front = FRONT.match(self.text, 0)
        word = self._word(0, front.end() if front else 0)
        if word is None or self.tokens or not ONE_UNIT.fullmatch(self.text, word[1]):
            return None
        return Number(word[0])

    def _word(self, start: int, front: int) -> tuple[Fraction, int] | None:
        """Return the number in words that stands at ``start`` ("a third") or behind what leads to it."""
        while start < front and self.text[start] in " :\n":
            start += 1
        return number_word(self.text, start) or number_word(self.text, front)

    def _left_side(self, index: int) -> Number | None:
        """Return the number on the left of an equation that ends in a term ("18 = 9 * 2")."""
        left = self.tokens[index - 1] if index else None
        if self.tokens[index].kind != "expression" or left is None or left.kind != "number":
            return None
        if self._next_after(index - 1, EQUALS) != index or self._next_after(index, EQUALS) is not None:
            return None
        return None if re.search(r"[-+*/^]\s*$", self.text[: left.start]) else left.number

    def _goes_with(self, before: int, index: int) -> bool:
        """Return whether the number of token ``index`` goes with the one before ("5 feet 7", "1 in 4")."""
        if before < 0:
            return False
        joined = (JOINED, COMPOUND, RANGE, SPACED, SECOND_CLAUSE, ANOTHER)
        between = self.text[self.tokens[before].end : self.tokens[index].start]
        verb = ANOTHER_HAS.fullmatch(between)
        if verb and self.text[: self.tokens[before].start].rstrip("$€£ ").endswith(f" {verb[1]}"):
            return True
        listed = LISTED.match(between)
        return bool(listed and listed.end() == len(between)) or any(
            (m := pattern.match(between)) and m.end() == len(between) for pattern in joined
        )

    def _sentence_start(self, index: int) -> int:
        start = 0
        for m in CLAUSE_END.finditer(self.text, 0, self.tokens[index].start):
            start = m.end()
        return start

    def _is_label(self, token: Token) -> bool:
        """Return whether a number counts a line or a step ("2. Add", "Step 3:")."""
        line = self.text.rfind("\n", 0, token.start) + 1
        before = self.text[line : token.start]
        if not before.strip(" *#-") and re.match(r"[.)]\s+\S", self.text[token.end : token.end + 12]):
            return True
        return bool(LABELLED.search(before))

    def _is_aside(self, token: Token) -> bool:
        """Return whether a number stands in brackets with words, or is a year ("in 2019")."""
        if A_YEAR.search(self.text[max(0, token.start - 8) : token.end]):
            return True
        opened = self.text.rfind("(", 0, token.start)
        closed = self.text.find(")", token.end)
        if opened < 0 or closed < 0 or ")" in self.text[opened : token.start]:
            return False
        return bool(_TERM.search(self.text[opened:closed])) or bool(
            re.search(r"[^\W\d_]", self.text[opened:closed])
        )


def _alone(raw: str, decimal: Decimal | None) -> Number | None:
    """Return the number that ``raw`` is, but for a word or two of unit after it."""
    text = flat(plain(raw)).strip()
    parts = tokens(text, decimal)
    if len(parts) != 1 or parts[0].kind != "number" or parts[0].start != 0:
        return None
    return parts[0].number if ONE_UNIT.fullmatch(text, parts[0].end) else None


def _whole(raw: str, decimal: Decimal | None) -> Found:
    """Return the number that a box holds; Undecided if it holds anything else."""
    text = flat(plain(raw)).strip().strip("$ ")
    text = re.sub(rf"^{VARIABLE}\s*", "", text)
    parts = tokens(text, decimal)
    if len(parts) == 1 and parts[0].kind == "number" and not text[: parts[0].start].strip("$≈ "):
        unit = text[parts[0].end :]
        return parts[0].number if re.fullmatch(r"[\s\w.%°€£¥/^$]*", unit) else UNDECIDED
    word = number_word(text, 0)
    return Number(word[0]) if word is not None else UNDECIDED
