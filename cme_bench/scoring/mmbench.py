"""MMBench with CircularEval: a question counts if it is right under every rotation of its options.

The letter is read by MMBench's rules (arXiv 2307.06281), without the language model that its authors ask
where the rules find nothing: what lmms-eval calls static.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_LETTERS = "ABCDE"
_OPTIONS = "ABCD"
_ROTATION = 1_000_000
"""Row ``k * _ROTATION + i`` is question i with its options rotated k times."""
_AROUND = (
    *(("", end) for end in (".", ",", ":", ")", ").")),
    *(("(", end) for end in (")", ").")),
    *((":", end) for end in ("", ",", ".", ":", ")", ").")),
)
"""What may stand around a letter, in the order in which it is looked for."""
_PHRASES = (
    *(
        f"{article}{kind}{noun} is"
        for kind, noun in (
            ("", "answer"),
            ("correct ", "answer"),
            ("best ", "answer"),
            ("correct ", "option"),
            ("best ", "option"),
            ("", "choice"),
            ("correct ", "choice"),
        )
        for article in ("the ", "")
    ),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_TRIMMED = ",.!?;:'\""


def mmbench(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, list[Any]]:
    """Give CircularEval what it needs of one rotation: its row's number, and right (1) or not."""
    options = {letter: str(doc[letter]) for letter in _OPTIONS if _there(doc.get(letter))}
    given = read_letter(results[0].strip(), options)
    return {"circular_acc": [int(doc["index"]), float(given == doc["answer"])]}


def circular(values: Sequence[Sequence[Any]]) -> float:
    """Return the share of questions that are right under all of their rotations that were asked."""
    questions: dict[int, list[float]] = defaultdict(list)
    for index, right in values:
        questions[index % _ROTATION].append(right)
    return sum(all(rotations) for rotations in questions.values()) / len(questions) if questions else 0.0


def read_letter(response: str, options: Mapping[str, str]) -> str:
    """Return the letter of the option that a response names, or whose text it holds; "" if none."""
    return _named(response) or _quoted(response, options) or _likely(response, sorted(options))


def _there(option: Any) -> bool:
    """Whether a row has an option. As in lmms-eval the text "nan" of a missing one counts here; it is not
    shown."""
    return isinstance(option, str)


def _named(response: str) -> str:
    """Return the only letter that stands alone. As in MMBench, "A" in more than three words may be the
    article."""
    words = response.split()
    alone = [letter for letter in _LETTERS if letter in words]
    if len(alone) == 1 and not ("A" in words and len(words) > 3):
        return alone[0]
    for before, after in _AROUND:
        found = [letter for letter in _LETTERS if f"{before}{letter}{after}" in words]
        if len(found) == 1:
            return found[0]
    return ""


def _quoted(response: str, options: Mapping[str, str]) -> str:
    held = [letter for letter, text in options.items() if text.lower() in response.lower()]
    return held[0] if len(held) == 1 else ""


def _likely(response: str, letters: Sequence[str]) -> str:
    """Return the letter that lmms-eval's static rules take: by the form in which it stands, then the last."""
    text = response.strip()
    for mark in _TRIMMED:
        text = text.strip(mark)
    found = list(_candidates(f" {text} ", letters)) or [
        (0, f" {text} ".rfind(letter), letter) for letter in letters if letter in text
    ]
    if not found:
        return ""
    best = max(rank for rank in (candidate[:2] for candidate in found))
    return next(letter for rank, place, letter in found if (rank, place) == best)


def _candidates(text: str, letters: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield rank, place and letter of each form in which a letter may stand."""
    bare, lower = text.strip(), text.lower()
    for rank, form in ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} ")):
        for letter in letters:
            if (place := text.rfind(form.format(letter))) >= 0:
                yield rank, place, letter
    for phrase in _PHRASES:
        if (start := lower.find(phrase)) >= 0:
            for letter in letters:
                if (place := text.find(letter, start + len(phrase))) >= 0:
                    yield 7, place, letter
    for letter in letters:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            yield 10, 0, letter
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            yield 9, len(text) - 1, letter
