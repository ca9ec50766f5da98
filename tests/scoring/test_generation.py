"""From a response to scores, for each type of answer."""

from __future__ import annotations

import pytest

from cme_bench.scoring.generation import METRICS, GoldAnswer, score_text

LABEL = GoldAnswer("label", choices=("yes", "no"), gold=1)
LETTER = GoldAnswer("letter", choices=("A", "B"), gold=0, options=("red", "blue"))
SHORT = GoldAnswer("short", references=("Paris", "City of Light"))
SUMMARY = GoldAnswer("summary", references=("the cat sat",))
NUMBER = GoldAnswer("number", references=("16 - 3 = 13 eggs.\n#### 1,300",))


@pytest.mark.parametrize(
    ("gold", "response", "scores", "rule"),
    [
        (LABEL, "No.", {"acc": 1.0, "f1_macro": [1, 1], "answered": 1.0}, "exact"),
        (LABEL, "Yes.", {"acc": 0.0, "f1_macro": [1, 0], "answered": 1.0}, "exact"),
        (LABEL, "Hm", {"acc": 0.0, "f1_macro": [1, -1], "answered": 0.0}, "none"),
        (LETTER, "(A)", {"acc": 1.0, "answered": 1.0}, "letter"),
        (LETTER, "It is blue", {"acc": 0.0, "answered": 1.0}, "option_only"),
        (SHORT, "It is the City of Light", {"em": 0.0, "f1": 0.75, "answered": 1.0}, "first_line"),
        (SHORT, "Answer: Paris.", {"em": 1.0, "f1": 1.0, "answered": 1.0}, "answer_is"),
        (SHORT, " ", {"em": 0.0, "f1": 0.0, "answered": 0.0}, "none"),
        (SUMMARY, "the cat sat", {"rouge_1": 1.0, "rouge_2": 1.0, "rouge_l": 1.0, "answered": 1.0}, "text"),
        (NUMBER, "13 hundred, so #### 1300", {"acc": 1.0, "answered": 1.0}, "hash_mark"),
        (NUMBER, "The answer is 13.", {"acc": 0.0, "answered": 1.0}, "answer_is"),
        (NUMBER, "none", {"acc": 0.0, "answered": 0.0}, "none"),
        (SUMMARY, "", {"rouge_1": 0.0, "rouge_2": 0.0, "rouge_l": 0.0, "answered": 0.0}, "none"),
    ],
)
def test_scores(gold: GoldAnswer, response: str, scores: dict[str, object], rule: str) -> None:
    scored = score_text(response, gold)
    assert {k: v if isinstance(v, list) else pytest.approx(v) for k, v in scored.scores.items()} == scores
    assert scored.answer.rule == rule
    assert set(scored.scores) == {*METRICS[gold.type], "answered"}


def test_no_answer_is_never_right() -> None:
    """A reference that normalises to nothing ("The The") is not met by an empty response."""
    assert score_text("", GoldAnswer("short", references=("The",))).scores["em"] == 0.0
    assert score_text("The", GoldAnswer("short", references=("The",))).scores["em"] == 1.0
