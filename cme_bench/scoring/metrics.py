"""Metrics of one item, named by formula. All lie in [0, 1]; higher is better."""

from __future__ import annotations

import functools
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import regex

from cme_bench.scoring.item_metrics import metric
from cme_bench.scoring.numerals import read_number, same_value
from cme_bench.scoring.text import SPACELESS, fold, folded_case, words

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

LM_EVAL_ALIASES = {"acc_norm": "acc_char", "acc_bytes": "acc_byte", "exact_match": "em"}
"""lm-eval's metric names and the formula names we print for them."""

_ARTICLES = regex.compile(r"\b(?:an|the)\b|\ba\b(?=\s+\S)")
_ARTICLE_LAST = regex.compile(r",\s*(?:a|an|the)[.)]?$")
_DROPPED = regex.compile(rf"[\p{{P}}{regex.escape(string.punctuation)}]")
_GROUPED = regex.compile(r"(?<![\w.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_SPACED = regex.compile(r"(?<=(?<![\w.])(?P<left>\d+|\w))\s+([-+*/=<>])\s+(?=(?P<right>\d+|\w)(?!\w))")
# punctuation that says something: a sign, a decimal point, a clock, C++ and C#, A+ and O-
_MEANT = regex.compile(
    r"(?<![\w)\]])-(?=[.$€£¥]?\d)|(?<!\w)\.(?=\d)|(?<=\d)[.,:/*^=<>'+-](?=[-.]?\d)|(?<=[^\W\d_])\++(?!\w)"
    r"|(?<=(?<![^\W_])[^\W\d_]{1,2})(?:\#|-(?!\S))|(?<=\b\w)[=*<>+](?=-?\w\b)"
)
# a term of mathematics or code, where no mark may go: \frac{1}{8}, (-3,2), ['a', 'b']
_ITEM = r"\s*(?:'[^']*'|\"[^\"]*\"|[-+]?[\d./]+|[^\W\d_])\s*"
_TERM = regex.compile(rf"\\[A-Za-z]+|[{{}}^]|^(?:\[{_ITEM}(?:,{_ITEM})*\]|\({_ITEM}(?:,{_ITEM})+\))\.?$")
_QUOTED = regex.compile(r"^([\"'])([^\"']*)\1\.?$")
_CHARACTER = regex.compile(rf"[{SPACELESS}]\p{{M}}*|[^\s{SPACELESS}]+", regex.V1)


@functools.lru_cache(maxsize=1 << 14)
def normalize_answer(text: str) -> str:
    """Return ``text`` as SQuAD compares it (Rajpurkar et al. 2016): lower case, no punctuation, no articles.

    Beyond SQuAD: Unicode is folded; marks that carry meaning stay (signs, decimal points, "C++", a term such
    as ``\\\\frac{1}{8}`` as a whole); "a" stays at the end ("Vitamin A"); characters of scripts without
    spaces are parted, so that spaces between them do not count.
    """
    text = _ARTICLE_LAST.sub("", _QUOTED.sub(r"\2", folded_case(text).strip()))
    if _TERM.search(text):
        return regex.sub(r"\s+", "", text.rstrip(".").replace("$", "").replace('"', "'"))
    marked = _SPACED.sub(_operator, _GROUPED.sub(lambda m: m.group().replace(",", ""), text))
    kept = [m.span() for m in _MEANT.finditer(marked)]
    bare = _without_punctuation(marked, kept)
    bare = " ".join(_CHARACTER.findall(_ARTICLES.sub(" ", bare)))
    return bare or text


def _operator(m: regex.Match[str]) -> str:
    """Return an operator without the spaces around it; between letters a minus that no rule drops."""
    return str(m[2]) if m[2] != "-" or (m["left"].isdigit() and m["right"].isdigit()) else "−"


def _without_punctuation(text: str, kept: Sequence[tuple[int, int]]) -> str:
    if not kept:
        return _DROPPED.sub("", text)
    parts, pos = [], 0
    for start, end in kept:
        parts += [_DROPPED.sub("", text[pos:start]), text[start:end]]
        pos = end
    return "".join([*parts, _DROPPED.sub("", text[pos:])])


@metric("em", "short")
def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1.0 if the prediction equals a reference: as normalised texts, or as numbers of one value."""
    pred = normalize_answer(prediction)
    if any(pred == normalize_answer(ref) for ref in references):
        return 1.0
    number = read_number(fold(prediction))
    others = () if number is None else (read_number(fold(ref)) for ref in references)
    return float(
        any(other is not None and number is not None and same_value(number, other) for other in others)
    )


@metric("f1", "short")
def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Return SQuAD's bag-of-words F1 against the reference that fits best; 1.0 for an exact match."""
    best = max((_f1(normalize_answer(prediction), normalize_answer(ref)) for ref in references), default=0.0)
    return best if best == 1.0 else max(best, exact_match(prediction, references))


def _f1(prediction: str, reference: str) -> float:
    pred, ref = prediction.split(), reference.split()
    if not pred or not ref:
        return float(pred == ref)
    common = sum((Counter(pred) & Counter(ref)).values())
    return 2 * common / (len(pred) + len(ref))


def rouge(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Return the F-measures of ROUGE-1, -2 and -L (rouge-score's), each against its best reference.

    Tokens are :func:`cme_bench.scoring.text.words`; those of ASCII letters are stemmed (Porter), as
    rouge-score does, so that English texts score as its own tokens do.
    """
    scores = _rouge_scorer().score_multi(references, prediction)
    return {
        "rouge_1": float(scores["rouge1"].fmeasure),
        "rouge_2": float(scores["rouge2"].fmeasure),
        "rouge_l": float(scores["rougeL"].fmeasure),
    }


@functools.lru_cache(maxsize=1)
def _rouge(prediction: str, references: tuple[str, ...]) -> dict[str, float]:
    return rouge(prediction, references)  # three metrics of one item


@metric("rouge_l", "summary")
def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Return ROUGE-L: the longest common subsequence with the best reference, as an F-measure."""
    return _rouge(prediction, tuple(references))["rouge_l"]


@metric("rouge_1", "summary")
def rouge_1(prediction: str, references: Sequence[str]) -> float:
    """Return ROUGE-1: the words in common with the best reference, as an F-measure."""
    return _rouge(prediction, tuple(references))["rouge_1"]


@metric("rouge_2", "summary")
def rouge_2(prediction: str, references: Sequence[str]) -> float:
    """Return ROUGE-2: the pairs of words in common with the best reference, as an F-measure."""
    return _rouge(prediction, tuple(references))["rouge_2"]


@functools.cache
def _rouge_scorer() -> RougeScorer:
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    stem = functools.lru_cache(maxsize=1 << 16)(PorterStemmer().stem)

    class Words(Tokenizer):  # type: ignore[misc]  # rouge-score is untyped
        def tokenize(self, text: str) -> list[str]:
            return [stem(word) if len(word) > 3 and word.isascii() else word for word in words(text)]

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Words())
