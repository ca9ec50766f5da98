"""Finding the answer in a generated text, without punishing its phrasing and without guessing.

Every rule is tried in a fixed order and the first that decides wins; its name is stored with the item, so
that a reader can see how each answer was found. A text that names two different answers decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_QUOTES = "\"'`*“”‘’ \t"
_ANSWER_IS = re.compile(
    r"\b(?:answer|label|option|choice|category|sentiment|emotion|relation(?:ship)?)\b(?:\s*\([^)]*\))?"
    r"(?:\s+(?:is|would be|should be)\b\s*:?|[\s*]*[:=])[\s*]*",
    re.IGNORECASE,
)
_PICKED = re.compile(r"\b(?:option|choice|letter|choose|pick|select|go with)\s+|\\boxed\{", re.IGNORECASE)
_SHORT_ANSWER = re.compile(
    r"(?:the\s+)?(?:(?:short|final|correct|best)\s+)?answer(?:\s+is\b|\s*:)\s*:?\s*", re.IGNORECASE
)

# "B", "B.", "(b) ...", "**B**: ...", "B - ..."; not "A dog", "A, B or C"
_LETTER_FIRST = re.compile(
    r"[(\[]?\**([A-Za-z])\**(?:[)\]]|[.:](?=\s|\*|$)|,(?!\s*(?:or\b|and\b|[A-Z]\b))|\s*(?:$|\n)|\s+[-–—]\s)"
)
_LETTER_IS = re.compile(r"([A-Z])\s+(?:is|because|since|seems|would)\b(?!\s+(?:not|wrong|incorrect|false)\b)")
_IS_WRONG = re.compile(r"[)\]\"'*]*\s+(?:is|are|was|seems)\s+(?:not|wrong|incorrect|false)\b")
_NOUN_NEXT = re.compile(r"\s+(?!(?:is|as|and|or|for|with|because|since|seems|would)\b)[a-z]")
_LETTER_HERE = re.compile(r"(?:option\s+|choice\s+|letter\s+)?[(\[\"'*]*([A-Za-z])(?![\w'])", re.IGNORECASE)
_LETTER_OF_LINE = re.compile(r"^[(\[]?\**([A-Z])\**[.):\]]", re.MULTILINE)

# what may stand between a label and the next in an echoed list ("yes or no", "joy, love, ...")
_LISTED = re.compile(r"\s*(?:/|\||(?:,\s*)?(?:or|and)\s|,)\s*", re.IGNORECASE)
# a denial right before a label, with up to two words between ("does not express any joy")
_DENIED = re.compile(
    r"(?:(?:\b(?:not|never|neither|nor|cannot|without|hardly|rather than|instead of|non)|n['’]t)"
    r"(?:[\s*\"'“”‘’]+(?:\w+\s+){0,2}|-)[*\"'“”‘’]*)$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Extraction:
    """What was read out of a response.

    ``text``: the answer as text, empty if none was found. ``choice``: its index among the choices, None for
    free text or if none was found. ``rule``: which rule decided, "none" if no rule did.
    """

    text: str
    rule: str
    choice: int | None = None


NOTHING = Extraction(text="", rule="none")


def extract_label(response: str, labels: Sequence[str]) -> Extraction:
    """Index of the label word that ``response`` answers with.

    Rules: ``exact`` (nothing but the label), ``start`` (begins with it, and not with a list of labels),
    ``answer_is`` ("the answer is ..."), ``only`` (exactly one label is named and not denied). Case is
    ignored; of two labels where one contains the other ("entailment", "not entailment") the longer is
    preferred.
    """
    text = response.strip(_QUOTES + "\n")
    bare = text.rstrip(".!").casefold()
    for index, label in enumerate(labels):
        if bare == label.casefold():
            return Extraction(label, "exact", index)
    claims = (_label_at(text, _skip_quotes(text, m.end()), labels) for m in _ANSWER_IS.finditer(text))
    if (i := _label_first(text, labels)) is not None:
        return Extraction(labels[i], "start", i)
    if (i := _only(claims)) is not None:
        return Extraction(labels[i], "answer_is", i)
    if (i := _only_mention(text, labels)) is not None:
        return Extraction(labels[i], "only", i)
    return NOTHING


def extract_letter(response: str, letters: Sequence[str], options: Sequence[str]) -> Extraction:
    """Index of the lettered option that ``response`` answers with.

    Rules: ``letter`` ("B", "b.", "(B) ...", "B is right"), ``answer_is`` ("the answer is B", "Answer: (b)"),
    ``picked`` ("I choose B", "option B", ``\\boxed{B}``), ``option_text`` (begins with the text of one
    option), ``option_only`` (exactly one option's text occurs and is not denied). The article in "A dog" is
    not the letter A, and a repeated list of options is no answer.
    """
    text = response.strip(_QUOTES + "\n")
    upper = [letter.upper() for letter in letters]

    def index(letter: str) -> int | None:
        return upper.index(letter.upper()) if letter.upper() in upper else None

    def letters_after(pattern: re.Pattern[str]) -> Iterator[int | None]:
        for m in pattern.finditer(text):
            here = _LETTER_HERE.match(text, m.end())
            if here and not _is_article(text, here) and not _IS_WRONG.match(text, here.end()):
                yield index(here.group(1))

    listed = {m.group(1) for m in _LETTER_OF_LINE.finditer(text)} & set(upper)
    first = _LETTER_FIRST.match(text) or _LETTER_IS.match(text)
    if first and len(listed) < 2 and (i := index(first.group(1))) is not None:
        return Extraction(letters[i], "letter", i)
    for pattern, rule in ((_ANSWER_IS, "answer_is"), (_PICKED, "picked")):
        if (i := _only(letters_after(pattern))) is not None:
            return Extraction(letters[i], rule, i)
    texts = [option.strip().rstrip(".") for option in options]
    if (i := _label_first(text, texts)) is not None:
        return Extraction(letters[i], "option_text", i)
    if (i := _only_mention(text, texts)) is not None:
        return Extraction(letters[i], "option_only", i)
    return NOTHING


def extract_short_answer(response: str) -> Extraction:
    """The first line that says something, without "The answer is" and surrounding quotes.

    Rules: ``answer_is``, ``first_line``.
    """
    rule = "first_line"
    for line in response.splitlines():
        rest = line.strip(_QUOTES)
        if m := _SHORT_ANSWER.match(rest):
            rule = "answer_is"
            rest = rest[m.end() :].strip(_QUOTES)
        if rest:
            return Extraction(rest, rule)
    return NOTHING


def extract_text(response: str) -> Extraction:
    """The whole response, for summaries. Rule: ``text``."""
    text = response.strip()
    return Extraction(text, "text") if text else NOTHING


def _only(claims: Iterator[int | None]) -> int | None:
    """The one index that is claimed; None if none or several are."""
    named = {i for i in claims if i is not None}
    return named.pop() if len(named) == 1 else None


def _skip_quotes(text: str, pos: int) -> int:
    while pos < len(text) and text[pos] in _QUOTES:
        pos += 1
    return pos


def _longest_first(labels: Sequence[str]) -> list[int]:
    return sorted((i for i, label in enumerate(labels) if label.strip()), key=lambda i: -len(labels[i]))


def _label_at(text: str, pos: int, labels: Sequence[str]) -> int | None:
    """Index of the longest label that stands at ``pos`` and ends at a word boundary there."""
    for i in _longest_first(labels):
        end = pos + len(labels[i])
        if text[pos:end].casefold() == labels[i].casefold() and not text[end : end + 1].isalnum():
            return i
    return None


def _label_first(text: str, labels: Sequence[str]) -> int | None:
    """Index of the label that ``text`` begins with, unless another follows as in a list of labels."""
    first = _label_at(text, 0, labels)
    if first is None:
        return None
    listed = _LISTED.match(text, len(labels[first]))
    if listed and _label_at(text, listed.end(), labels) not in (None, first):
        return None
    return first


def _only_mention(text: str, labels: Sequence[str]) -> int | None:
    """Index of the one label that occurs as whole words and is not denied; None if none or several do."""
    taken: list[tuple[int, int]] = []
    seen: set[int] = set()
    for i in _longest_first(labels):
        pattern = rf"(?<!\w)(?<!\d\.){re.escape(labels[i])}(?!\w)(?!\.\d)"
        for m in re.finditer(pattern, text, re.IGNORECASE):
            if any(m.start() < end and start < m.end() for start, end in taken):
                continue
            taken.append(m.span())
            if not _DENIED.search(text[: m.start()]) and not _is_determiner(text, m):
                seen.add(i)
    return seen.pop() if len(seen) == 1 else None


def _is_determiner(text: str, match: re.Match[str]) -> bool:
    """Whether a matched "no" belongs to a noun ("there is no evidence")."""
    return match.group().casefold() == "no" and bool(re.match(r"\s+\w", text[match.end() :]))


def _is_article(text: str, match: re.Match[str]) -> bool:
    """Whether a matched "a"/"A" is the English article ("the answer is a dog")."""
    return match.group(1) in "aA" and bool(_NOUN_NEXT.match(text, match.end()))
