"""Which label word a response answers with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from cme_bench.scoring.answer import NOTHING, Extraction
from cme_bench.scoring.choices import Choices, is_determiner
from cme_bench.scoring.claims import (
    LABEL,
    UNDECIDED,
    Claim,
    Undecided,
    after_fillers,
    claims,
    decide,
    until_next_question,
)
from cme_bench.scoring.letter_forms import NO_IDEA
from cme_bench.scoring.markup import boxes, plain
from cme_bench.scoring.text import fold, simplified, spelled_alike
from cme_bench.scoring.thinking import without_thinking

Found = int | Undecided | None

_AROUND = "\"'`*()[]{}<>「」【】『』 \t\n"
_STOPS = ".!。"
# what may follow a label that begins a text: "Yes, ...", "No it ..."; not "No matter", "Negative reviews"
_AFTER_FIRST = re.compile(
    r"[\"')\]*]*\s*(?:$|\n|[.!](?!\s?\d)|[,;:](?!\d)|[-—]\s|\(|[。、])"
    r"|\s+(?:sentiment|tone|emotion|feeling|review|statement|relation(?:ship)?)\s*(?:[.,:;]|$|\n)"
    r"|\s+(?:because|since|as|it|this|that|the|they|he|she|we|i|you|there|these|those|for|due|based|given|in)\b"
)
_TAKES_BACK = re.compile(
    r"[,;.!…]*\s*(?:(?:but|well|hmm|no|wait)\b,?\s*)?(?:(?:actually|rather|then again|on second thoughts?|"
    r"i mean|maybe|also|in fact|really|wait)\b[,.!…]*\s*)+(?:the answer is\s+|it'?s\s+)?"
    r"|[,;]?\s*(?:but|(?:mixed|tinged|along)\s+with)\s+"
)
_PICK = re.compile(
    r"\bi(?:'d| would|'ll| will)?\s+(?:go with|choose|pick|select|opt for|settle on|lean towards?)\s+"
)
_CONDITION = re.compile(r"[,;]?\s*\(?\s*(?:but\s+)?(?:only\s+)?(?:if|unless|assuming|provided|depending)\b")
_SAID_OF = re.compile(r"\s*[:?]\s*(?:no|not|false|nope)\b")
"""After a label: it holds only then, or it is asked for and denied ("Equivalent: no")."""
_WEIGHED = re.compile(r"\s*[:=(]\s*~?\d")
_THEN = re.compile(r"[\s.!,;:]*(?:or\s+)?")
_NOT_ONE = re.compile(r"(?:either|both|neither|between)\b")


def extract_label(response: str, labels: Sequence[str]) -> Extraction:
    """Find the label word that ``response`` answers with.

    Rules, the first that decides: ``exact`` (nothing but the label), ``boxed``, ``answer_is`` ("the answer is
    ...", "True or false: ..."), ``start`` (begins with it: "Yes, ...", not "No matter"), ``only`` (exactly
    one label is named and not denied; labels that are numbers are not read so). Case is ignored; of two
    labels where one contains the other ("entailment", "not entailment") the longer is preferred.
    """
    reader = _Reader(labels)
    index, rule = reader.read(until_next_question(without_thinking(response)))
    return Extraction(labels[index], rule, index) if isinstance(index, int) else NOTHING


class _Reader:
    """Reads one text; each rule gives an index, Undecided (and no further rule is tried) or None."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = Choices([_spelled(label) for label in labels])
        self._denied: set[Found] = set()
        self.numeric = all(label.isdigit() for label in self.labels.texts)

    def read(self, raw: str) -> tuple[Found, str]:
        text = _spelled(plain(raw)).strip()
        rules: tuple[tuple[str, Callable[[], Found]], ...] = (
            ("exact", lambda: self._exact(text)),
            ("boxed", lambda: self._boxed(raw)),
            ("answer_is", lambda: self._claimed(text)),
            ("start", lambda: self._first(text.lstrip(_AROUND))),
            ("only", lambda: None if self.numeric else self.labels.only_mention(text)),
        )
        for rule, find in rules:
            if (label := find()) is not None:
                return UNDECIDED if label in self._denied else label, rule
        return None, "none"

    def _exact(self, text: str) -> int | None:
        bare = text.strip(_AROUND).rstrip(_STOPS).strip(_AROUND)
        return self.labels.texts.index(bare) if bare in self.labels.texts and bare else None

    def _boxed(self, raw: str) -> Found:
        if "boxed" not in raw and "fbox" not in raw:
            return None
        labels = {self._exact(_spelled(plain(box))) for box in boxes(fold(raw))} - {None}
        return None if not labels else labels.pop() if len(labels) == 1 else UNDECIDED

    def _claimed(self, text: str) -> Found:
        self._denied = {
            self._after(text, claim.end) for claim in claims(text, LABEL) if claim.stance == "denies"
        } - {None}
        picked = (Claim(m.start(), m.end(), "says", final=True) for m in _PICK.finditer(text))
        made = sorted([*claims(text, LABEL), *self._echoes(text), *picked], key=lambda claim: claim.end)
        read = [(claim, self._after(text, claim.end)) for claim in made]
        return decide(text, [(claim, value) for claim, value in read if value is not None])

    def _after(self, text: str, pos: int) -> Found:
        for start in after_fillers(text, pos):
            if _NOT_ONE.match(text, start):
                return UNDECIDED
            label = self.labels.listed_at(text, start)
            if isinstance(label, int) and self._belongs_to_a_noun(text, start, label):
                return None
            if label is not None:
                return label
        return None

    def _belongs_to_a_noun(self, text: str, pos: int, label: int) -> bool:
        end = pos + len(self.labels.texts[label])
        return is_determiner(text, pos, end) and not _AFTER_FIRST.match(text, end)

    def _echoes(self, text: str) -> Iterator[Claim]:
        """Yield a claim after each list of labels that ends in a colon ("True or false: ...")."""
        pos = 0
        while pos < len(text):
            end = self.labels.end_of_list(text, pos)
            m = re.compile(r"[\"')\]]*\s*[:?]").match(text, end) if end is not None else None
            if m:
                yield Claim(pos, m.end(), "says")
            pos = end if end is not None else _next_word(text, pos)

    def _first(self, text: str) -> Found:
        first = self.labels.at(text, 0)
        if first is None or not _AFTER_FIRST.match(text, len(self.labels.texts[first])):
            return None
        end = len(self.labels.texts[first])
        if _CONDITION.match(text, end) or _SAID_OF.match(text, end) or NO_IDEA.match(text, end):
            return UNDECIDED
        if self._taken_back(text, end) or self._lists(text):
            return UNDECIDED
        return None if self.labels.end_of_list(text, 0) is not None else first

    def _lists(self, text: str) -> bool:
        """Return whether several labels stand each on a line, or each with a number ("joy: 8, love: 3")."""
        alone = {self._exact(line) for line in text.splitlines()} - {None}
        weighed = {
            i
            for i, label in enumerate(self.labels.texts)
            if any(_WEIGHED.match(text, m.end()) for m in re.finditer(rf"(?<!\w){re.escape(label)}", text))
        }
        return len(alone) > 1 or len(weighed) > 1

    def _taken_back(self, text: str, pos: int) -> bool:
        """Return whether another label follows the first one in its sentence ("Yes, but actually no")."""
        first = self.labels.at(text, 0)
        if (m := _TAKES_BACK.match(text, pos)) and self.labels.at(text, m.end()) not in (None, first):
            return True
        then = _THEN.match(text, pos)
        other = self.labels.at(text, then.end()) if then else None
        if then is None or other is None or other == first:
            return False
        return not text[then.end() + len(self.labels.texts[other]) :].strip(_AROUND + _STOPS)


def _spelled(text: str) -> str:
    """Return a text as labels are compared: ``not_entailment`` is written "not entailment" as well."""
    return simplified(spelled_alike(text)).replace("_", " ")


def _next_word(text: str, pos: int) -> int:
    m = re.compile(r"\w*\W*").match(text, pos)
    return max(pos + 1, m.end() if m else len(text))
