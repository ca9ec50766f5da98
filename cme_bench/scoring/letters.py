"""Which lettered option a response answers with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from cme_bench.scoring.answer import NOTHING, Extraction
from cme_bench.scoring.choices import LISTED, Choices, is_asked, is_denied
from cme_bench.scoring.claims import (
    LETTER,
    UNDECIDED,
    Claim,
    Undecided,
    after_fillers,
    claims,
    decide,
    until_next_question,
)
from cme_bench.scoring.letter_forms import (
    BEFORE_RIGHT,
    GOES_ON,
    NO_IDEA,
    NOT_MINE,
    NOT_ONE,
    NOT_PICKED,
    OF_OPTIONS,
    OPTION_TAKEN_BACK,
    PICK,
    SAYS_SO,
    TEXT_NEXT,
    WRONG_LINE,
    Forms,
    forms,
)
from cme_bench.scoring.markup import boxes, plain
from cme_bench.scoring.text import fold, simplified
from cme_bench.scoring.thinking import without_thinking

Found = int | Undecided | None
_SENTENCE = re.compile(r"\s+(?:is|was|are|were|has|have|had)\b[^.\n]*")


def extract_letter(response: str, letters: Sequence[str], options: Sequence[str]) -> Extraction:
    """Find the lettered option that ``response`` answers with.

    Rules, the first that decides: ``letter`` (nothing but a letter), ``boxed`` (``\\\\boxed{B}``),
    ``answer_is`` ("the answer is B", "B is correct", "答案是B"), ``picked`` ("I choose B"), ``concluded``
    ("So, B."), ``letter`` (begins with a letter: "B. ...", "(B) ..."), ``last_line`` (ends with a line of one
    letter), ``option_text`` (begins with the text of one option), ``option_only`` (one option's text occurs
    and is not denied). Two letters, a denied and a hedged one are no answer; a repeated list is none either.
    """
    reader = _Reader(forms(tuple(letter.upper() for letter in letters)), _options(options))
    index, rule = reader.read(until_next_question(without_thinking(response)))
    return Extraction(letters[index], rule, index) if isinstance(index, int) else NOTHING


def _options(options: Sequence[str]) -> Choices:
    return Choices([simplified(option).strip().rstrip(".") for option in options])


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one text; each rule gives an index, Undecided (and no further rule is tried) or None."""

    is_: Forms
    options: Choices

    def read(self, raw: str) -> tuple[Found, str]:
        text = simplified(plain(raw)).strip()
        rules: tuple[tuple[str, Callable[[], Found]], ...] = (
            ("letter", lambda: self._index(self.is_.alone.fullmatch(text))),
            ("boxed", lambda: self._boxed(raw)),
            ("answer_is", lambda: self._claimed(text)),
            ("picked", lambda: self._picked(text)),
            ("concluded", lambda: self._concluded(text)),
            ("letter", lambda: self._first(text)),
            ("last_line", lambda: self._last_line(text)),
            ("option_text", lambda: self._option_first(_lower(text))),
            ("option_only", lambda: self.options.only_mention(_lower(text))),
        )
        for rule, find in rules:
            if (option := find()) is not None:
                return option, rule
        return None, "none"

    def _index(self, m: re.Match[str] | None) -> int | None:
        return self.is_.letters.index(m["x"].upper()) if m else None

    def _boxed(self, raw: str) -> Found:
        if "boxed" not in raw and "fbox" not in raw:
            return None
        options = [self._of_box(box) for box in boxes(fold(raw))]
        readable = {i for i in options if i is not None}
        return _one(readable) if readable else UNDECIDED if options else None

    def _of_box(self, box: str) -> Found:
        text = simplified(plain(box)).strip()
        if (i := self._index(self.is_.alone.fullmatch(text))) is not None:
            return i
        return self._after(text, 0)

    def _claimed(self, text: str) -> Found:
        read = [(claim, self._after(text, claim.end)) for claim in claims(text, LETTER)]
        read += [
            (Claim(m.start(), m.end(), "says"), self._right(text, m)) for m in self.is_.right.finditer(text)
        ]
        read += [
            (Claim(m.start(), m.end(), "hedges"), self._index(m)) for m in self.is_.possible.finditer(text)
        ]
        read += [
            (Claim(m.start(), m.end(), "says"), self._instead(text, m))
            for m in self.is_.instead.finditer(text)
        ]
        read += self._corrections(text, max((claim.end for claim, _ in read), default=0))
        read.sort(key=lambda pair: pair[0].end)
        return decide(text, [(claim, value) for claim, value in read if value is not None])

    def _corrections(self, text: str, pos: int) -> list[tuple[Claim, Found]]:
        """Return the letters that are named after the last claim as the right ones after all."""
        found = self.is_.corrected.finditer(text, pos)
        return [(Claim(m.start(), m.end(), "says"), self._index(m)) for m in found]

    def _after(self, text: str, pos: int) -> Found:
        for start in after_fillers(text, pos):
            if self._begins_list(text, start):
                return None
            if (option := self._at(text, start)) is not None:
                return option
        return None

    def _begins_list(self, text: str, pos: int) -> bool:
        """Return whether the options are listed from ``pos`` on, each on a line ("A. ...", "B. ...")."""
        lines = self.is_.lines.finditer(text, text.rfind("\n", 0, pos) + 1)
        first, second = next(lines, None), next(lines, None)
        if first is None or second is None or not first.start() <= pos <= first.start("x"):
            return False
        a, b = self._index(first), self._index(second)
        return a is not None and b == a + 1

    def _at(self, text: str, pos: int) -> Found:
        """Return the option named at ``pos``, by its text or its letter."""
        option = self.options.listed_at(_lower(text), pos)
        if isinstance(option, Undecided) or (option is not None and len(self.options.texts[option]) > 1):
            return option
        if NOT_ONE.match(text, pos) or self.is_.several.match(text, pos):
            return UNDECIDED
        m = self.is_.here.match(text, pos)
        if m is None or (m["x"] in "aAI" and GOES_ON.match(text, m.end())):
            return option
        if m["x"].upper() not in self.is_.letters:
            return UNDECIDED if m["x"].isupper() and option is None else option
        return self._single(text, m)

    def _single(self, text: str, m: re.Match[str]) -> Found:
        """Return the letter of ``m`` unless it is one of several or is denied."""
        if self._lists_another(text, m):
            return UNDECIDED
        unsaid = is_denied(text, m.start(), m.end()) or is_asked(text, m.end())
        return UNDECIDED if unsaid or self._contradicted(text, m) else self._index(m)

    def _lists_another(self, text: str, m: re.Match[str]) -> bool:
        """Return whether another letter follows that of ``m``, as in a list of them."""
        listed = LISTED.match(text, m.end("x"))
        other = self.is_.here.match(text, listed.end()) if listed else None
        if other is None or not (other["x"].isupper() or m["x"].islower()):
            return False
        return not (other["x"] in "aAI" and GOES_ON.match(text, other.end()))

    def _instead(self, text: str, m: re.Match[str]) -> Found:
        """Return the letter that is named in the place of another ("not A but B")."""
        return UNDECIDED if self._lists_another(text, m) else self._index(m)

    def _contradicted(self, text: str, m: re.Match[str]) -> bool:
        """Return whether another option follows the letter ("B. red", where red is A; "A: B")."""
        between = TEXT_NEXT.match(text, m.end("x"))
        if between is None or between.end() == m.end("x"):
            return False
        if (other := self.is_.alone.match(text, between.end())) and other.end() == len(text):
            return self._index(other) != self._index(m)
        option = self.options.at(_lower(text), between.end())
        return option is not None and len(self.options.texts[option]) > 1 and option != self._index(m)

    def _right(self, text: str, m: re.Match[str]) -> Found:
        before = text[max(0, m.start() - 60) : m.start()]
        if BEFORE_RIGHT.search(before):
            return UNDECIDED
        return self._index(m) if m["x"].isupper() and OF_OPTIONS.search(before) else None

    def _picked(self, text: str) -> Found:
        options: set[Found] = set()
        denied = False
        for m in PICK.finditer(text):
            read = self._after(text, m.end())
            before = text[max(0, m.start() - 60) : m.start()]
            if read is not None and (NOT_PICKED.search(before) or NOT_MINE.search(before)):
                denied = True
            elif read is not None:
                options.add(read)
        return _one(options) if options or not denied else UNDECIDED

    def _concluded(self, text: str) -> Found:
        conclusions = [m for m in self.is_.concluded.finditer(text) if SAYS_SO.search(m.group())]
        return _one({self._single(text, m) for m in conclusions if m["x"].isupper()})

    def _first(self, text: str) -> Found:
        listed = {m["x"] for m in self.is_.lines.finditer(text)}
        m = self.is_.first.match(text)
        if m is None:
            return self._before_text(text)
        if len(listed) > 1 or WRONG_LINE.match(text, m.end("x")):
            return None
        if len({found["x"] for found in self.is_.weighed.finditer(text)}) > 1:
            return UNDECIDED
        if NO_IDEA.match(text, m.end()) or self._lists_another(text, m) or self._contradicted(text, m):
            return UNDECIDED
        return self._index(m)

    def _before_text(self, text: str) -> Found:
        """Return Undecided where a letter begins the text of another option ("C 15", where B is 15)."""
        m = self.is_.here.match(text)
        if m is None or m["x"] not in self.is_.letters or m["x"] in "AI":
            return None
        return UNDECIDED if self._contradicted(text, m) else None

    def _last_line(self, text: str) -> Found:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or len({m["x"] for m in self.is_.lines.finditer(text)}) > 1:
            return None
        m = self.is_.lines.match(lines[-1])
        return self._index(m)

    def _option_first(self, text: str) -> Found:
        option = self.options.listed_at(text, 0)
        if option is None or isinstance(option, Undecided):
            return None
        goes_on = _SENTENCE.match(text, len(self.options.texts[option]))
        if goes_on and self.options.only_mention(text[: goes_on.end()]) is None:
            return UNDECIDED
        named = self.is_.behind.match(text, len(self.options.texts[option]))
        if named and self._index(named) != option:
            return UNDECIDED
        back = OPTION_TAKEN_BACK.match(text, len(self.options.texts[option]))
        other = self.options.at(text, back.end()) if back else None
        return UNDECIDED if other is not None and other != option else option


def _one(options: Set[Found]) -> Found:
    """Return the one that was found; Undecided if several were."""
    return None if not options else next(iter(options)) if len(options) == 1 else UNDECIDED


def _lower(text: str) -> str:
    """Return ``text`` without case, every character in its place."""
    lowered = text.casefold()
    if len(lowered) == len(text):
        return lowered
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
