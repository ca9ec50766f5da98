"""Soft accuracy of short answers against ten people's, as VQAv2, TextVQA and VizWiz have it.

An answer counts in full if three of the other nine people gave it. Answers are normalised as by VQA's own
evaluation (github.com/GT-Vision-Lab/VQA, BSD): punctuation, number words, articles, contractions. The
functions give what lmms-eval's give (``tasks/vqav2``, ``textvqa``, ``vizwiz_vqa``), with its quirks.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

_NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(number)
    for number, word in enumerate("one two three four five six seven eight nine ten".split(), start=1)
}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_MOST_PERIODS = 32
"""VQA's evaluation passes the flag ``re.UNICODE``, 32, where the number of replacements stands."""
_COMMA = re.compile(r"(?<=\d)(\,)+(?=\d)")
_CONTRACTIONS = dict(
    pair.split(":")
    for pair in """aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've
    couldnt've:couldn't've didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've
    hadn'tve:hadn't've hasnt:hasn't havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd
    howll:how'll hows:how's Id've:I'd've I'dve:I'd've Im:I'm Ive:I've isnt:isn't itd:it'd itd've:it'd've
    it'dve:it'd've itll:it'll let's:let's maam:ma'am mightnt:mightn't mightnt've:mightn't've
    mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've neednt:needn't notve:not've
    oclock:o'clock oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't
    shed've:she'd've she'dve:she'd've she's:she's shouldve:should've shouldnt:shouldn't
    shouldnt've:shouldn't've shouldn'tve:shouldn't've somebody'd:somebodyd somebodyd've:somebody'd've
    somebody'dve:somebody'd've somebodyll:somebody'll somebodys:somebody's someoned:someone'd
    someoned've:someone'd've someone'dve:someone'd've someonell:someone'll someones:someone's
    somethingd:something'd somethingd've:something'd've something'dve:something'd've
    somethingll:something'll thats:that's thered:there'd thered've:there'd've there'dve:there'd've
    therere:there're theres:there's theyd:they'd theyd've:they'd've they'dve:they'd've theyll:they'll
    theyre:they're theyve:they've twas:'twas wasnt:wasn't wed've:we'd've we'dve:we'd've weve:we've
    werent:weren't whatll:what'll whatre:what're whats:what's whatve:what've whens:when's whered:where'd
    wheres:where's whereve:where've whod:who'd whod've:who'd've who'dve:who'd've wholl:who'll whos:who's
    whove:who've whyll:why'll whyre:why're whys:why's wont:won't wouldve:would've wouldnt:wouldn't
    wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll y'allll:y'all'll
    yall'd've:y'all'd've y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd youd've:you'd've
    you'dve:you'd've youll:you'll youre:you're youve:you've""".split()
)
_FULL = 3
"""So many other people must have given an answer for it to count in full."""


def short_answer(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score a response of TextVQA or VizWiz; ``answers`` are texts. 0 for a row without answers."""
    given = normalised(results[0])
    people = [normalised(answer) for answer in doc.get("answers") or ()]
    shares = [min(1.0, (people.count(given) - (answer == given)) / _FULL) for answer in people]
    return {"exact_match": statistics.mean(shares) if shares else 0.0}


def vqav2(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score a response of VQAv2; ``answers`` are mappings. As lmms-eval has it, commas and the like are not
    cut before, and people who cannot be told apart do not confirm each other."""
    given = _without_articles(_without_punctuation(_one_line(results[0])))
    people = [
        {**person, "answer": _without_articles(_without_punctuation(_one_line(person["answer"])))}
        for person in doc.get("answers") or ()
    ]
    shares = []
    for person in people:
        agreeing = [other for other in people if other != person and other["answer"] == given]
        shares.append(min(1.0, len(agreeing) / _FULL))
    return {"exact_match": statistics.mean(shares) if shares else 0.0}


def normalised(answer: str) -> str:
    """Return an answer as VQA's evaluation compares it."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _without_articles(_without_punctuation(_one_line(text)))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    """Cut a mark that stands beside a blank, or in an answer with a comma in a number; others become
    blanks."""
    out = text
    grouped = _COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside or grouped else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS)


def _without_articles(text: str) -> str:
    """Lower-case; write number words as digits and contractions with their apostrophes; drop articles."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
