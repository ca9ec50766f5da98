"""Macro-F1 against a plain second implementation and scikit-learn; its standard error by definition."""

from __future__ import annotations

import math
import random

import pytest
from sklearn.metrics import f1_score

from cme_bench.scoring.macro_f1 import NO_ANSWER, f1_macro, f1_macro_stderr


def draw(seed: int, *, unanswered: bool) -> list[tuple[int, int]]:
    source = random.Random(seed)
    classes = range(source.randrange(1, 5))
    answers = [*classes, NO_ANSWER] if unanswered else list(classes)
    return [(source.choice(classes), source.choice(answers)) for _ in range(source.randrange(2, 30))]


def reference(pairs: list[tuple[int, int]]) -> float:
    """Precision and recall of every class, one by one."""
    scores = []
    for label in {gold for gold, _ in pairs} | {answer for _, answer in pairs if answer >= 0}:
        hits = sum(gold == label == answer for gold, answer in pairs)
        claimed = sum(answer == label for _, answer in pairs)
        wanted = sum(gold == label for gold, _ in pairs)
        precision = hits / claimed if claimed else 0.0
        recall = hits / wanted if wanted else 0.0
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return sum(scores) / len(scores)


@pytest.mark.parametrize("seed", range(40))
def test_it_agrees_with_the_references(seed: int) -> None:
    pairs = draw(seed, unanswered=seed % 2 == 0)
    assert f1_macro(pairs) == pytest.approx(reference(pairs), abs=1e-12)
    if seed % 2:
        gold, answers = zip(*pairs, strict=True)
        assert f1_macro(pairs) == pytest.approx(f1_score(gold, answers, average="macro", zero_division=0.0))


@pytest.mark.parametrize("seed", range(10))
def test_the_standard_error_leaves_every_item_out_once(seed: int) -> None:
    pairs = draw(seed, unanswered=True)
    without = [reference(pairs[:i] + pairs[i + 1 :]) for i in range(len(pairs))]
    mean = sum(without) / len(without)
    expected = math.sqrt((len(pairs) - 1) / len(pairs) * sum((f - mean) ** 2 for f in without))
    assert f1_macro_stderr(pairs) == pytest.approx(expected, abs=1e-12)


def test_by_hand() -> None:
    # class 0: TP 1, FP 1, FN 1 -> 1/2; class 1: TP 1, FP 0, FN 2 -> 1/2
    assert f1_macro([(0, 0), (0, NO_ANSWER), (1, 1), (1, 0), (1, NO_ANSWER)]) == pytest.approx(0.5)
    assert math.isnan(f1_macro([]))
    assert math.isnan(f1_macro_stderr([(0, 0)]))
