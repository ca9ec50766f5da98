"""Finding the answer in a generated text, without punishing its phrasing and without guessing.

Every rule is tried in a fixed order and the first that decides wins; its name is stored with the item, so
that a reader can see how each answer was found. A text that names two different answers decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_ANSWER_IS = re.compile(
    r"\b(?:answer|label|option|choice|category|sentiment|emotion|relation(?:ship)?)\b"
    r"(?:\s+(?:is|would be|should be)\b\s*:?|\s*[:=])\s*",
    re.IGNORECASE,
)
_LETTER_FIRST = re.compile(r"\(?\**([A-Z])\**(?:\)|[.:,](?=\s|$)|\s*$|\s*\n)")
_LETTER_HERE = re.compile(r"(?:option\s+|choice\s+|letter\s+)?[\(\[\"'*]*([A-Z])(?![A-Za-z'])", re.IGNORECASE)
_QUOTES = "\"'`*“”‘’ \t"


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

    Rules: ``exact`` (nothing but the label), ``start`` (begins with it), ``answer_is`` ("the answer is
    ..."), ``only`` (exactly one label is named, and not under a "not"). Case is ignored; of two labels
    where one contains the other ("entailment", "not entailment") the longer is preferred.
    """
    text = response.strip(_QUOTES + "\n")
    by_length = sorted(range(len(labels)), key=lambda i: -len(labels[i]))

    def found(index: int, rule: str) -> Extraction:
        return Extraction(labels[index], rule, index)

    bare = text.rstrip(".!").casefold()
    for i in by_length:
        if bare == labels[i].casefold():
            return found(i, "exact")
    if (first := _label_at(text, 0, labels, by_length)) is not None:
        return found(first, "start")
    claims = {
        _label_at(text, _skip_quotes(text, m.end()), labels, by_length) for m in _ANSWER_IS.finditer(text)
    }
    named = [i for i in claims if i is not None]
    if len(named) == 1:
        return found(named[0], "answer_is")
    if (only := _only_mention(text, labels, by_length)) is not None:
        return found(only, "only")
    return NOTHING


def extract_letter(response: str, letters: Sequence[str], options: Sequence[str]) -> Extraction:
    """Index of the lettered option that ``response`` answers with.

    Rules: ``letter`` ("B", "B.", "(B) ..."), ``answer_is`` ("the answer is B", "Answer: (b)"),
    ``option_text`` (the text of one option and nothing else, or at the start), ``option_only`` (exactly one
    option's text occurs). "A dog ..." is not the letter A.
    """
    text = response.strip(_QUOTES + "\n")

    def found(index: int, rule: str) -> Extraction:
        return Extraction(letters[index], rule, index)

    if (m := _LETTER_FIRST.match(text)) and m.group(1) in letters:
        return found(list(letters).index(m.group(1)), "letter")
    claims: set[int] = set()
    for m in _ANSWER_IS.finditer(text):
        here = _LETTER_HERE.match(text, m.end())
        if here and here.group(1).upper() in letters and not _is_article(text, here):
            claims.add(list(letters).index(here.group(1).upper()))
    if len(claims) == 1:
        return found(claims.pop(), "answer_is")
    by_length = sorted(range(len(options)), key=lambda i: -len(options[i]))
    if (i := _label_at(text, 0, options, by_length)) is not None:
        return found(i, "option_text")
    if (i := _only_mention(text, options, by_length)) is not None:
        return found(i, "option_only")
    return NOTHING


def extract_short_answer(response: str) -> Extraction:
    """The first line that says something, without "The answer is" and surrounding quotes.

    Rules: ``answer_is``, ``first_line``.
    """
    line = next((s for s in (part.strip() for part in response.splitlines()) if s), "")
    if m := re.match(r"(?:the\s+)?(?:short\s+)?answer(?:\s+is|\s*:)\s*:?\s*", line, re.IGNORECASE):
        rest = line[m.end() :].strip(_QUOTES)
        return Extraction(rest, "answer_is") if rest else NOTHING
    line = line.strip(_QUOTES)
    return Extraction(line, "first_line") if line else NOTHING


def extract_text(response: str) -> Extraction:
    """The whole response, for summaries. Rule: ``text``."""
    text = response.strip()
    return Extraction(text, "text") if text else NOTHING


def _skip_quotes(text: str, pos: int) -> int:
    while pos < len(text) and text[pos] in _QUOTES:
        pos += 1
    return pos


def _label_at(text: str, pos: int, labels: Sequence[str], by_length: Sequence[int]) -> int | None:
    """Index of the longest label that stands at ``pos`` and ends at a word boundary there."""
    for i in by_length:
        end = pos + len(labels[i])
        if text[pos:end].casefold() == labels[i].casefold() and not text[end : end + 1].isalnum():
            return i
    return None


def _only_mention(text: str, labels: Sequence[str], by_length: Sequence[int]) -> int | None:
    """Index of the one label that occurs as whole words; None if none or several do, or one under a "not"."""
    taken: list[tuple[int, int]] = []
    seen: set[int] = set()
    for i in by_length:
        if not labels[i].strip():
            continue
        pattern = rf"(?<!\w)(not\s+|n't\s+)?{re.escape(labels[i])}(?!\w)"
        for m in re.finditer(pattern, text, re.IGNORECASE):
            if any(start <= m.start() < end or start < m.end() <= end for start, end in taken):
                continue
            taken.append(m.span())
            if m.group(1):
                return None
            seen.add(i)
    return seen.pop() if len(seen) == 1 else None


def _is_article(text: str, match: re.Match[str]) -> bool:
    """Whether a matched "a"/"A" is the English article ("the answer is a dog")."""
    return match.group(1) in "aA" and bool(re.match(r"\s+[a-z]", text[match.end() :]))
