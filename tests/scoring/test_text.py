"""One reading of Unicode: folding, words, and the tokens of rouge-score on English."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from cme_bench.scoring.metrics import rouge
from cme_bench.scoring.text import fold, folded_case, words


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("（Ｂ）", "(B)"),
        ("−5 – 3", "-5 - 3"),
        ("“it’s”", '"it\'s"'),
        ("70\u202f000\u00a0m", "70 000 m"),
        ("10² m⁻¹", "10^2 m^-1"),
        ("2½", "2 1/2"),
        ("½", "1/2"),
        ("a\u200bb\ufeffc", "abc"),
        ("cafe\u0301", "café"),
        ("a\tb\r\nc", "a b\nc"),
        ("3×4", "3*4"),
        ("plain text.", "plain text."),
    ],
)
def test_folding(text: str, folded: str) -> None:
    assert fold(text) == folded


def test_case_is_folded_with_every_script() -> None:
    assert folded_case("STRASSE") == folded_case("straße")
    assert folded_case("ΣΊΣΥΦΟΣ") == folded_case("σίσυφος")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Don't stop_now, 3.5!", ["don", "t", "stop", "now", "3", "5"]),
        ("für über", ["für", "über"]),
        ("今天 good", ["今", "天", "good"]),
        ("समीक्षा है", ["समीक्षा", "है"]),
        ("กรุงเทพ", ["ก", "รุ", "ง", "เ", "ท", "พ"]),
        ("데이터 분석", ["데이터", "분석"]),
        ("コーヒー", ["コ", "ー", "ヒ", "ー"]),
        ("", []),
    ],
)
def test_words(text: str, tokens: list[str]) -> None:
    assert words(text) == tokens


ENGLISH = st.text(alphabet="abdeginrst ABT,.'-_%5\n", max_size=60)


@given(ENGLISH, ENGLISH)
def test_english_scores_are_those_of_rouge_score(prediction: str, reference: str) -> None:
    """Exactly, on any ASCII text: the same tokens, stems and counts."""
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(reference, prediction)
    assert rouge(prediction, [reference]) == {
        "rouge_1": theirs["rouge1"].fmeasure,
        "rouge_2": theirs["rouge2"].fmeasure,
        "rouge_l": theirs["rougeL"].fmeasure,
    }


@given(st.text(max_size=80))
def test_any_text_equals_itself(text: str) -> None:
    scores = rouge(text, [text])
    assert scores["rouge_1"] == (1.0 if words(text) else 0.0)
    assert fold(fold(text)) == fold(text)
