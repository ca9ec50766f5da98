"""The few words a response answers with, and whole texts."""

from __future__ import annotations

import re

from cme_bench.scoring.answer import NOTHING, Extraction
from cme_bench.scoring.claims import ANSWER, Claim, claims, until_next_question
from cme_bench.scoring.markup import last_box, plain
from cme_bench.scoring.text import fold
from cme_bench.scoring.thinking import without_thinking

_QUOTES = "\"'`*“”‘’ \t"
_WRAPPED = re.compile(r"\s*(?:\$.*\$|\\\w+\{.*\}|\\\(.*\\\)|<(\w+)>.*</\1>)\s*")
_SENTENCE_END = re.compile(
    r"(?<=[^\W\d_]{3})[.!](?=\s+[\"'(]?[A-Z0-9])|(?<=\d)[.!](?=\s+[\"'(]?[A-Z])|(?<=[。！？])(?=.)"
)
_ABBREVIATED = re.compile(
    r"\b(?:Mrs|Prof|Gen|Col|Sgt|Capt|Rev|Hon|Gov|Sen|Rep|Inc|Ltd|Corp|Mts|approx|vol|Bros)$", re.I
)
_TAKES_BACK = re.compile(r"[.!?]?\s*(?:no\b|or\b|actually|wait|sorry|but\b|not\b|不对|不)", re.IGNORECASE)
_PROBABLY = re.compile(
    r"(?:probably|most likely|likely|definitely|certainly|simply|clearly)\s+", re.IGNORECASE
)
_ITEM = re.compile(r"^1[.)]\s+(?=\D)")
_SIGN = r"[\u2600-\u27bf\u2b50\u2b55\U0001f000-\U0001faff\ufe0f\u200d\s]"
_DECORATION = re.compile(rf"^(?=.*\w){_SIGN}+|(?<=[\w.!)']){_SIGN}+$")
_ASKED = re.compile(r"(?:q|question|passage|context)\s*:", re.IGNORECASE)
_LATER = re.compile(r"\W*(?:no(?=[,.!:;])|or\b|actually|wait|sorry|oops|correction)", re.IGNORECASE)
_QUOTE_LAST = re.compile(r"[\"'*]+([.!?])$")
_PREFIX = re.compile(r"^(?:A|Ans)\s*:\s+")
_JSON = re.compile(r"\s*(?:\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'|([^\"'\n,{}\[\]]+))\s*(?=[,}\]]|$)")


def extract_short_answer(response: str) -> Extraction:
    """Find the words that ``response`` answers with: its first sentence where it states no answer.

    Rules, the first that decides: ``boxed`` (the last ``\\\\boxed{...}``), ``answer_is`` (what follows "The
    answer is", the last one), ``first_line`` (the first line that says something, without quotes around it).
    """
    text = until_next_question(without_thinking(response))
    if (box := last_box(fold(text))) is not None:
        answer = plain(box).strip(_QUOTES)
        return Extraction(answer, "boxed") if answer else NOTHING
    for rule, find in (("answer_is", _claimed), ("first_line", _first_line)):
        if answer := find(text):
            return Extraction(answer, rule)
    return NOTHING


def extract_text(response: str) -> Extraction:
    """Find the whole response without its reasoning, for summaries. Rule: ``text``."""
    text = without_thinking(response).strip()
    return Extraction(text, "text") if text else NOTHING


def _claimed(text: str) -> str:
    stated = [claim for claim in claims(plain(text), ANSWER) if claim.stance == "says"]
    return next((answer for claim in reversed(stated) if (answer := _after(plain(text), claim))), "")


def _after(text: str, claim: Claim) -> str:
    """Return the words that stand after a claim: of its line, or of the next one that has any."""
    rest = text[claim.end :].lstrip(" :")
    if '"' in text[claim.start : claim.end] or "'" in text[claim.start : claim.end]:
        m = _JSON.match(rest)
        return next((part for part in m.groups() if part), "").strip() if m else ""
    line = next((line for line in rest.splitlines() if line.strip(_QUOTES)), "")
    words = _PROBABLY.sub("", line.strip(_QUOTES), count=1) if _PROBABLY.match(line.strip(_QUOTES)) else line
    return _QUOTE_LAST.sub(r"\1", first_sentence(words.strip(_QUOTES)).strip(_QUOTES))


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip(_QUOTES)]
    listed = any(re.match(r"2[.)]\s", line) for line in lines)
    for place, line in enumerate(lines):
        words = plain(line) if _WRAPPED.fullmatch(line.strip(_QUOTES)) else line
        if _ASKED.match(words) and place + 1 < len(lines):
            continue
        words = _DECORATION.sub("", words.strip(_QUOTES))
        words = _PREFIX.sub("", words if listed else _ITEM.sub("", words))
        if words and place + 1 < len(lines) and _LATER.match(lines[place + 1]):
            return " ".join([words, *lines[place + 1 :]])
        if words and not (re.fullmatch(r"(?:the\s+)?answer(?:\s+is)?\s*:?", words, re.IGNORECASE)):
            return first_sentence(words).strip(_QUOTES)
    return ""


def first_sentence(line: str) -> str:
    """Return the first sentence of ``line`` with its mark; the line where what follows takes it back."""
    for m in _SENTENCE_END.finditer(line):
        if _ABBREVIATED.search(line[: m.start()]):
            continue
        return line if _TAKES_BACK.match(line, m.end()) else line[: m.end()]
    return line
