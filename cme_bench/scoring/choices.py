"""Finding words and letters of given choices in a text: boundaries, lists, denials."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import regex

from cme_bench.scoring.claims import UNDECIDED, Undecided
from cme_bench.scoring.text import SPACELESS, folded_case

_SPACELESS = regex.compile(rf"[{SPACELESS}]")
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}_]")
# what may stand between a choice and the next in a list ("yes or no", "joy, love, ...", "A和B")
LISTED = regex.compile(
    r"[\"')\]]*\s*(?:/|\||&|\+|,?\s*but\s|[.,;!]?\s*\bor,?\s+(?:(?:maybe|perhaps|possibly|arguably|even"
    r"|else)\b,?\s*)?"
    r"|[.,;]?\s*(?:maybe|perhaps|possibly|arguably)\s|,\s*(?:or|and|&)\s|,|、|;"
    r"|(?:or|and|and/or|as well as|vs\.?|versus|oder|und|ou|et|o|"
    r"u|y|e|или|и|или же|lub|albo|atau|dan|veya|ve|hoặc|và|또는|혹은|そして|または|と|か|या|और|أو|หรือ)\s"
    r"|\((?:or|and|maybe|possibly)\s|或者?|和|与|及|还是|以及|、|または|か|と|又は|(?:와|과|이나|나)\s*|-|to\s|或是)"
    r"[\s\"'(\[]*(?:also\s|even\s|option\s|choice\s|选项)?[\"'(\[]*",
    regex.IGNORECASE,
)
_OR = regex.compile(r"[\"')\]]*\s*(?:\bor\b|/)\s*[\"'(\[]*")
# a denial right before a choice, with up to two words between ("does not express any joy")
_DENIED = regex.compile(
    r"(?:(?:(?:\b(?:not|never|neither|nor|cannot|without|hardly|far from|anything but|"
    r"lack(?:s|ing)?|less|free of|devoid of|no longer|rather than|instead of|non|unlike|except|"
    r"than|whether|if|(?:(?:could|might|may) be|can be(?!\s+(?:best\s+)?(?:classif|describ|label"
    r"|categori|summari|characteri)))|maybe,?|perhaps,?|possibly,?|fail(?:s|ed)? to be|(?:opposite"
    r"|absence) of|"
    r"(?:wrong|false|incorrect) (?:to|that)|nicht|kein\w*|pas|ni|не"
    r"|нет)|n['’]t)"
    r"(?:[\s*\"'“”‘’(]+(?:(?:(?!but\b)\w+\s+){0,2}(?:classif|call|label|categori[sz]|describ|consider"
    r"|regard|rat|think|"
    r"believ|say)\w*\s+)?(?:(?!but\b)[\w'’]+\s+){0,2}|-)[*\"'“”‘’(]*)"
    r"|\b(?:no one|nobody|nothing|none)\b(?:(?!\bbut\b)[^.,;:\n]){0,40}\s[*\"'“”‘’(]*"
    r"|\b(?:partly|partially|half|almost|nearly)\s+"
    r"|\bno\s+|(?:不是?|并非|非|没有?|无|未|别|不应该?选?|而非)\s*[\"'(]?)$",
    regex.IGNORECASE,
)
_DENIED_AFTER = regex.compile(
    r"[)\]\"'}.:]*\s*(?:(?:is|are|was|seems|looks|would be)(?:\s+(?:also|clearly|definitely|obviously"
    r"|just))?"
    r"(?:\s+(?:not|wrong|incorrect|false|ruled out|out|never|impossible)\b|n't)|cannot be"
    r"|can be (?:ruled|eliminated|excluded)|depending\b|if\b|ではな|ではあり|じゃな|(?:가|이)\s*아[니닙]"
    r"|(?:değil|नहीं|नहीँ|نیست|نہیں|নয়|না(?!\p{L})|இல்லை|அல்ல|కాదు|അല്ല|ਨਹੀਂ)"
    r"|は(?:間違|誤|不正解)|项?是?错|项?是?不[正对]|项?错误|[项]?不(?:正确|对)|是错误)"
)
_ASKED = regex.compile(r"[)\]\"'}.]*\s*(?:吗|\?|,\s*(?:isn't it|right|correct|no)\?)")
_BOUND_WORDS = r"\s+or\s+(?:later|earlier|more|less|fewer|before|after|above|below)\b"
_BOUND = rf"(?!{_BOUND_WORDS})"
_BUT = regex.compile(r"\bnot\s+[\w-]+,?\s+but\s+(?:rather\s+)?$", regex.IGNORECASE)


class Choices:
    """The choices of an item, ready to be found: compared folded and without case."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = [folded_case(text).strip() for text in texts]
        self.order = sorted(
            (i for i, text in enumerate(self.texts) if text), key=lambda i: -len(self.texts[i])
        )

    def at(self, text: str, pos: int) -> int | None:
        """Return the longest choice that stands in ``text`` (folded) at ``pos`` and ends as a word."""
        for i in self.order:
            end = pos + len(self.texts[i])
            if text.startswith(self.texts[i], pos) and ends_word(text, end, len(self.texts[i])):
                return i
        return None

    def listed_at(self, text: str, pos: int) -> int | Undecided | None:
        """Return as :meth:`at`; Undecided where another choice follows, as in a list of them."""
        first = self.at(text, pos)
        if first is None:
            return None
        end = pos + len(self.texts[first])
        listed = LISTED.match(text, end)
        if listed and self.at(text, listed.end()) not in (None, first):
            return UNDECIDED
        return UNDECIDED if _DENIED_AFTER.match(text, end) or _ASKED.match(text, end) else first

    def end_of_list(self, text: str, pos: int) -> int | None:
        """Return where a list of two or more different choices ends that begins at ``pos``, or None."""
        seen: set[int] = set()
        end = None
        while (i := self.at(text, pos)) is not None:
            seen.add(i)
            end = pos + len(self.texts[i])
            step = LISTED.match(text, end)
            if step is None:
                break
            pos = step.end()
        return end if len(seen) > 1 else None

    def only_mention(self, text: str) -> int | None:
        """Return the one choice that occurs as whole words and is neither denied nor asked for, or None."""
        taken: list[tuple[int, int]] = []
        seen: set[int] = set()
        denied: list[int] = []
        for i in self.order:
            for m in self._pattern(i).finditer(text):
                if any(m.start() < end and start < m.end() for start, end in taken):
                    continue
                taken.append(m.span())
                if _ASKED.match(text, m.end()):
                    return None
                if is_denied(text, m.start(), m.end()):
                    denied.append(m.start())
                elif not is_determiner(text, m.start(), m.end()):
                    seen.add(i)
        if any(self._with_another(text, start) for start in denied):
            return None  # "I cannot say yes or no"
        return seen.pop() if len(seen) == 1 else None

    def _with_another(self, text: str, pos: int) -> bool:
        """Return whether the choice at ``pos`` is joined with another one by "or"."""
        first = self.at(text, pos)
        joined = None if first is None else _OR.match(text, pos + len(self.texts[first]))
        return joined is not None and self.at(text, joined.end()) not in (None, first)

    def _pattern(self, i: int) -> regex.Pattern[str]:
        return _mention(self.texts[i])


@functools.lru_cache(maxsize=4096)
def _mention(choice: str) -> regex.Pattern[str]:
    before = r"(?<![\p{L}\p{M}\p{N}_])(?<!\d[.,])"
    after = r"(?![\p{L}\p{M}\p{N}_])(?![.,]\d)(?!-ish\b)"
    if choice[0].isdigit():
        before += r"(?<!(?:^|[\s(=])[-+])(?<![/:^])"
        before += r"(?<!\b(?:before|after|until|over|under|above|below|least|most)\s)"
        after += r"(?!\s*[/:^]\s*\d)(?!\s*%|\s+percent\b)" + _BOUND
    if _SPACELESS.match(choice[0]):
        before = ""
    if _SPACELESS.match(choice[-1]):
        after = r"(?!\p{M})"
        if len(choice) == 1:  # one character stands in many words: 是 in 但是
            before, after = rf"(?<![{SPACELESS}])", rf"(?![{SPACELESS}])"
    return regex.compile(before + regex.escape(choice) + after)


def ends_word(text: str, end: int, length: int) -> bool:
    """Return whether a choice of ``length`` characters ends at ``end``: no letter or digit goes on."""
    if end >= len(text):
        return True
    nxt, last = text[end], text[end - 1]
    if regex.match(r"-ish\b", text[end : end + 5]):
        return False
    if last.isdigit() and regex.match(rf"[.,:/^-]?\d|%|\s*[-+*/=]\s*\d|{_BOUND_WORDS}", text[end : end + 20]):
        return False
    if _SPACELESS.match(last):
        return not (length == 1 and _SPACELESS.match(nxt) and nxt not in "的でだ")
    return not _WORD.match(nxt) or bool(_SPACELESS.match(nxt))


def is_denied(text: str, start: int, end: int) -> bool:
    """Return whether the choice at ``start:end`` is said not to be the one ("not A", "A is wrong")."""
    before = text[max(0, start - 60) : start]
    denied = _DENIED.search(before) and not _BUT.search(before)  # "not A but B"
    return bool(denied or _DENIED_AFTER.match(text, end))


def is_asked(text: str, end: int) -> bool:
    """Return whether the choice that ends at ``end`` is asked for ("B?")."""
    return bool(_ASKED.match(text, end))


def is_determiner(text: str, start: int, end: int) -> bool:
    """Return whether a matched "no" belongs to a noun or a number ("there is no evidence", "no. 5")."""
    return text[start:end] == "no" and bool(regex.match(r"\s+\w|\.\s?\d", text[end:]))
