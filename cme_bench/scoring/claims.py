"""Where a text states its answer ("the answer is", "Answer:", "答案是"), in thirty languages.

A claim that hedges ("the answer could be B") or denies ("the answer is not B") is found as such, so that no
weaker rule makes an answer of it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from cme_bench.scoring.answer_object import answer_alone

Stance = Literal["says", "hedges", "denies"]
T = TypeVar("T")

ANSWER = "answer|final (?:result|value|number|amount|total)"
LETTER = (
    "answer|ans|option|choice|letter|label|correct response|correct one|right one|verdict|pick|selection|"
    "(?:best|final) guess"
)
LABEL = (
    "answer|label|option|choice|category|class|classification|sentiment|emotion|relation(?:ship)?|verdict|"
    "prediction|polarity|rating|stance"
)
"""Nouns whose value is the answer, by type of answer."""

_ASIDE = r"(?:\s*\([^()\n]*\))?(?:\s+(?:to|of|for|here|in|between|expressed|conveyed)\b[^.\n:?!=]{0,80}?)?"
_SAYS = (
    r"is|was|would be|would have to be|has got to be|should be|must be|has to be|needs to be|will be"
    r"|remains"
)
_HEDGES = r"(?:could|might|may|can)(?:\s+(?:also|well|possibly))?\s+be"
_DENIES = r"(?:is|was|would|should|must|can|could)(?:n't|\s*not)\b|cannot be"
_COLON = r"[\"']?\s*(?::|=>|->|→|⇒|➜|➡|=)|\s+[-—]\s"


@functools.cache
def _english(nouns: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?<![A-Za-z])(?:{nouns})(?![A-Za-z]){_ASIDE}"
        rf"(?:(?P<denies>\s+(?:{_DENIES}))|(?P<hedges>\s+(?:{_HEDGES})\b)|(?:\s+(?:{_SAYS})\b\s*:?"
        rf"|{_COLON}))",
        re.IGNORECASE,
    )


_JSON_KEY = re.compile(
    r"(?<=[{,\n])\s*[\"'](?:final[_ -]?)?(?:result|solution|output|ans|response|value)[\"']\s*:",
    re.IGNORECASE,
)
_IT_MAY = re.compile(
    r"\b(?:it|this|that)\s+(?:(?P<hedges>(?:could|might|may)(?:\s+also)?\s+be))\b", re.IGNORECASE
)
_FINAL = re.compile(
    r"(?:\b(?:final|so|therefore|thus|hence|finally|consequently|in conclusion)\b|因此|所以|故|综上|最终)"
    r"\W*(?:\w+\W+){0,2}$",
    re.IGNORECASE,
)
_WRONG_ONE = re.compile(r"\b(?:incorrect|wrong|false|worst|least \w+|other|opposite)[ ]+$", re.IGNORECASE)
_HEADING = re.compile(
    r"^[#\s]*(?:(?:the|my)\s+)?(?:(?:final|correct|short|best)\s+)?answer\s*(?::\s*)?(?:\n"
    r"|\s(?=[A-Z]\W*$))|^\W*(?:correct|ans|final|result)\s*:|^\W*ans\.\s+(?=[A-Z]\b)|^#{2,}\s+(?=\S+\s*$)",
    re.IGNORECASE | re.MULTILINE,
)
_CHINESE = re.compile(
    r"(?:答案|(?:正确|最终)的?(?:选项|答案|结果)|情感(?:倾向|极性)?|类别|标签|关系|情绪|立场|(?<!不)正确的(?=[是为应])"
    r"|(?<![回问解应作])答(?=\s*:))[】\])]?\s*"
    r"(?:(?P<denies>并?不(?:应|可能)?(?:该|当)?[是为选]|并?非)|(?P<hedges>(?:也|很|有)?可能(?:是|为|选)?)|"
    r"(?:应该|应当|应|就|只能)?(?:是|为|选择?)?\s*:?)"
)
_OTHER = (
    r"(?:正解|正答|答え|解答|回答)\s*(?:は|:)",
    r"(?:正しい(?:の|選択肢|答え)|正しいもの)は",
    r"(?:정답|답변?)\s*(?:은|는|이)?\s*:?",
    r"réponse(?:\s+(?:correcte|exacte|finale))?\s*(?:est|:|c'est)",
    r"(?:antwort|lösung)\s*(?:ist|lautet|wäre|:)",
    r"respuesta(?:\s+(?:correcta|final))?\s*(?:es|sería|:)",
    r"resposta(?:\s+(?:correta|certa|final))?\s*(?:é|seria|:)",
    r"risposta(?:\s+(?:corretta|esatta|giusta|finale))?\s*(?:è|sarebbe|:)",
    r"antwoord\s*(?:is|:)",
    r"(?:ответ|відповідь)\s*(?:[:—-]|это|є)?",
    r"odpowied(?:ź|zią)(?:\s+(?:to|jest|brzmi))?\s*:?",
    r"(?:cevap|yanıt)\s*:?",
    r"đáp án(?:\s+đúng)?\s*(?:là|:)",
    r"jawaban(?:nya)?(?:\s+yang benar)?\s*(?:adalah|:)",
    r"(?:الإجابة|الاجابة|الجواب)(?:\s+الصحيحة|\s+الصحيح)?\s*(?:هي|هو|:)?",
    r"उत्तर\s*(?:है|:)?",
    r"คำตอบ(?:ที่ถูกต้อง)?\s*(?:คือ|:)",
    r"(?<!คำ)ตอบ\s*(?:ว่า|:)?\s*(?=ข้อ|[A-Z(])",
    r"(?<!nicht )richtig(?:e)?\s+(?:ist|wäre)(?=\s)(?!\s+(?:nicht|weder|keine))",
    r"(?:odpověď|odpoveď)\s*(?:je|:)",
    r"svar(?:et)?\s*(?:är|er|:)",
    r"vastaus\s*(?:on|:)",
    r"válasz\s*:?",
    r"răspuns(?:ul)?(?:\s+corect)?\s*(?:este|e\b|:)",
    r"απάντηση\s*(?:είναι|:)",
    r"ה?תשובה(?:\s+הנכונה)?\s*(?:היא|:)",
    r"(?:پاسخ|جواب)(?:\s+(?:صحیح|درست))?\s*:?",
    r"(?:সঠিক\s+)?উত্তর\s*(?:হলো|হল|:)?",
    r"(?:பதில்|விடை|సమాధానం)\s*:?",
    r"(?:правильный|верный)\s+вариант\s*(?:[:—-]|это)?",
)
_ELSEWHERE = re.compile(
    unicodedata.normalize("NFKC", "|".join(rf"(?<!\w){head}" for head in _OTHER)), re.IGNORECASE
)

FILLER = re.compile(
    r"\s*(?:(?:therefore|thus|hence|then|so|most likely|very likely|likely|probably|definitely|clearly|"
    r"certainly|simply|indeed|obviously|overall|just|as follows|given as|without (?:a|any) doubt"
    r"|actually|the|la|le|el|die|der|das|il|that|it's|it is|"
    r"option|choice|letter|number|opción|alternativ(?:et|a)?|vaihtoehto|možnost|varianta|η|אפשרות|گزینه"
    r"|ข้อ|ตัวเลือก|विकल्प|বিকল্প|(?:a\s+)?letra|lettera|lettre|l'option|options?|选项|选|第|буква|вариант)\b"
    r"|选项|选|[,:;\"'(\[{「『【《<|*]|-(?=\s))",
    re.IGNORECASE,
)
_MOST_FILLERS = 8

CORRECTED = re.compile(
    r"\b(?:wait|actually|no,|nope|sorry|correction|correct(?:ing)? (?:my|that)|mistake|i mean|rather,|"
    r"instead,|on second thoughts?|re-?consider|let me re|however,)|更正|不对|错了|等等|重新",
    re.IGNORECASE,
)
_NEXT_QUESTION = re.compile(
    r"\n\s*(?:#{2,}\s*(?:instruction|input|question)s?\b|example\s+\d+\s*:)"
    r"|\n\s*(?:question|problem|q|passage|premise|sentence|review|user|human|题目|问题|问)\s*\d*\s*[:.]",
    re.IGNORECASE,
)


_OPENING = re.compile(
    r"\W*(?:(?:sure|okay|ok|certainly|of course|absolutely|great|alright|here|let's|let us|let me|"
    r"to (?:answer|solve))\b[^\n]{0,100}|(?:\W*solution\W*)?)",
    re.IGNORECASE,
)


_RESTATED = re.compile(
    r"(?:(?:passage|premise|context|text|sentence|review|hypothesis|question"
    r"|article)\s*\d*\s*:[^\n]*(?:\n|\Z))+",
    re.IGNORECASE,
)
"""Lines of the question, repeated."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement of an answer: ``start`` of its words, ``end``, where the answer is to stand.

    ``final``: it says that it concludes ("final answer", "so the answer is").
    """

    start: int
    end: int
    stance: Stance
    final: bool = False


@dataclass(frozen=True, slots=True)
class Undecided:
    """An answer that a reader cannot decide: two of them, or a denied one."""


UNDECIDED = Undecided()


def claims(text: str, nouns: str) -> list[Claim]:
    """Return the claims in ``text`` (as :func:`~cme_bench.scoring.markup.plain` gives it), in order.

    ``nouns``: what is claimed in English, one of the constants above.
    """
    patterns = [_english(nouns), _HEADING, _IT_MAY, _ELSEWHERE]
    if not text.isascii():
        patterns.append(_CHINESE)
    matches = [m for pattern in patterns for m in pattern.finditer(text)] or [*_JSON_KEY.finditer(text)]
    return [_claim(text, m) for m in sorted(matches, key=lambda m: m.end())]


def _claim(text: str, m: re.Match[str]) -> Claim:
    names = m.groupdict()
    stance: Stance = "denies" if names.get("denies") else "hedges" if names.get("hedges") else "says"
    before = text[max(0, m.start() - 40) : m.start()]
    if _WRONG_ONE.search(before):
        stance = "denies"
    return Claim(m.start(), m.end(), stance, bool(_FINAL.search(before) or "final" in m.group().lower()))


def after_fillers(text: str, pos: int) -> Iterator[int]:
    """Yield the places from ``pos`` on where the answer may stand: after spaces, then after each filler."""
    for _ in range(_MOST_FILLERS):
        while pos < len(text) and text[pos].isspace():
            pos += 1
        yield pos
        filler = FILLER.match(text, pos)
        if filler is None or filler.end() == pos:
            return
        pos = filler.end()


def decide(text: str, read: Sequence[tuple[Claim, T | Undecided]]) -> T | Undecided | None:
    """Return the one answer that the claims of a text make; Undecided if they contradict each other.

    ``read``: the claims where something could be read. A later claim replaces an earlier one after words of
    correction ("Wait, ..."), and claims that conclude replace the others. A claim that only hedges decides
    nothing and keeps weaker rules from doing so.
    """
    decided: list[tuple[Claim, T | Undecided]] = []
    hedged: list[T | Undecided] = []
    for claim, value in read:
        if claim.stance == "denies":
            continue
        if claim.stance == "hedges":
            hedged.append(value)
        elif decided and decided[-1][1] != value and CORRECTED.search(text, decided[-1][0].end, claim.end):
            decided = [(claim, value)]
        else:
            decided.append((claim, value))
    decided = [(claim, value) for claim, value in decided if claim.final] or decided
    values = {value for _, value in decided}
    if len(values) > 1 or (values and any(value not in values for value in hedged)):
        return UNDECIDED
    if not values:
        return UNDECIDED if hedged else None
    return values.pop()


_OFFER = re.compile(
    r"(?:\n\s*|(?<=[.!?)*])\s+)(?:please\s+)?(?:(?:let me know|tell me) (?:if|whether)|would you like|"
    r"do you want me to|if you(?:'d| would) like|if you want me to|feel free to)\b[^\n]*\s*\Z",
    re.IGNORECASE,
)


def until_next_question(response: str) -> str:
    """Return what stands before the first line that asks another question, and before a last offer of help
    ("Let me know if ...").

    Models that complete text go on with questions of their own. A question after nothing but an opening
    ("Sure! Here is the solution:") is the one that was asked, repeated.
    """
    response = answer_alone(response)
    offer = _OFFER.search(response)
    if offer and response[: offer.start()].strip():
        response = response[: offer.start()]
    for m in _NEXT_QUESTION.finditer(response):
        before = response[: m.start()].strip()
        if not (_OPENING.fullmatch(before) or _RESTATED.fullmatch(before) or before.endswith(":")):
            return response[: m.start()]
    return response
