"""Each metric against a second, plain implementation, and hand-worked values."""

from __future__ import annotations

import itertools
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from nltk.stem.porter import PorterStemmer

from cme_bench.scoring.metrics import exact_match, normalize_answer, rouge, token_f1

WORDS = (
    "the a an cat cats sat sitting on mat, mats. Paris paris! 42 (rue) run running well-known it's".split()
)


def squad_normal(text: str) -> list[str]:
    """SQuAD's normalisation, word by word; but a last "a" is no article ("Vitamin A"; "Tale, A" has one)."""
    text = re.sub(r",\s*a$", "", text.lower().strip())
    kept = "".join(" " if c.isspace() else c for c in text.lower() if c not in string.punctuation).split()
    words = [w for i, w in enumerate(kept, 1) if w not in {"a", "an", "the"} or (w == "a" and i == len(kept))]
    return words or text.split()  # "The" alone is something


def squad_f1(prediction: str, reference: str) -> float:
    ours, theirs = squad_normal(prediction), squad_normal(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    rest, same = list(theirs), 0
    for word in ours:
        if word in rest:
            rest.remove(word)
            same += 1
    if not same:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def rouge_words(text: str) -> list[str]:
    stem: Callable[[str], str] = PorterStemmer().stem
    words = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
    return [stem(word) if len(word) > 3 else word for word in words]


def f_measure(same: int, n_prediction: int, n_reference: int) -> float:
    return 2 * same / (n_prediction + n_reference) if same else 0.0


def rouge_n(prediction: str, reference: str, n: int) -> float:
    grams = []
    for text in (prediction, reference):
        words = rouge_words(text)
        grams.append(Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)))
    same = sum(min(count, grams[1][gram]) for gram, count in grams[0].items())
    return f_measure(same, sum(grams[0].values()), sum(grams[1].values()))


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by its recursive definition."""
    table: dict[tuple[int, int], int] = {}
    for i, j in itertools.product(range(len(a) + 1), range(len(b) + 1)):
        if i == 0 or j == 0:
            table[i, j] = 0
        elif a[i - 1] == b[j - 1]:
            table[i, j] = table[i - 1, j - 1] + 1
        else:
            table[i, j] = max(table[i - 1, j], table[i, j - 1])
    return table[len(a), len(b)]


def rouge_l(prediction: str, reference: str) -> float:
    ours, theirs = rouge_words(prediction), rouge_words(reference)
    return f_measure(longest_common(ours, theirs), len(ours), len(theirs))


def texts(seed: int) -> tuple[str, str]:
    source = random.Random(seed)
    return tuple(" ".join(source.choices(WORDS, k=source.randrange(9))) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(60))
def test_metrics_agree_with_the_reference(seed: int) -> None:
    prediction, reference = texts(seed)
    assert normalize_answer(prediction).split() == squad_normal(prediction)
    assert exact_match(prediction, [reference]) == float(squad_normal(prediction) == squad_normal(reference))
    assert token_f1(prediction, [reference]) == pytest.approx(squad_f1(prediction, reference))
    expected = {
        "rouge_1": rouge_n(prediction, reference, 1),
        "rouge_2": rouge_n(prediction, reference, 2),
        "rouge_l": rouge_l(prediction, reference),
    }
    assert rouge(prediction, [reference]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "references", "em", "f1"),
    [
        ("The Beatles!", ["beatles"], 1.0, 1.0),
        ("the  Beatles", ["Stones", "The Beatles"], 1.0, 1.0),
        ("John Lennon", ["Lennon"], 0.0, 2 / 3),
        ("John Lennon", ["Paul", "Lennon", "John W. Lennon"], 0.0, 0.8),
        ("cat cat", ["cat"], 0.0, 2 / 3),
        ("don't", ["dont"], 1.0, 1.0),
        ("thesis", ["sis"], 0.0, 0.0),
        ("", ["x"], 0.0, 0.0),
        ("x", [], 0.0, 0.0),
    ],
)
def test_short_answers_by_hand(prediction: str, references: list[str], em: float, f1: float) -> None:
    assert exact_match(prediction, references) == em
    assert token_f1(prediction, references) == pytest.approx(f1)


def test_rouge_by_hand() -> None:
    # unigrams: 3 of 4 and 5; bigrams: "the cat" of 3 and 4; the subsequence: the cat mat
    scores = rouge("the cat my mat", ["the cat sat on mat"])
    assert scores == pytest.approx({"rouge_1": 6 / 9, "rouge_2": 2 / 7, "rouge_l": 6 / 9})
    assert rouge("running", ["run"])["rouge_1"] == 1.0  # stems
    assert rouge("b a", ["a b"]) == pytest.approx({"rouge_1": 1.0, "rouge_2": 0.0, "rouge_l": 0.5})
    assert rouge("", ["a b"]) == {"rouge_1": 0.0, "rouge_2": 0.0, "rouge_l": 0.0}


def test_rouge_takes_the_reference_that_fits_best() -> None:
    assert rouge("one two", ["three", "one two"]) == rouge("one two", ["one two"])
