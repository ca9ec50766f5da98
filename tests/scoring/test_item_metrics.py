"""A metric is one registration: it is scored, shown on its scale, and averaged in its direction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from cme_bench.scoring.generation import GoldAnswer, score_text
from cme_bench.scoring.item_metrics import ITEM_METRICS, metric
from cme_bench.scoring.scales import ITEM_SCALES, RAW, SHARE, measure_of


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    before = dict(ITEM_METRICS), dict(ITEM_SCALES)
    yield
    for held, earlier in zip((ITEM_METRICS, ITEM_SCALES), before, strict=True):
        held.clear()
        held.update(earlier)  # type: ignore[arg-type]


def words_too_many(answer: str, references: Sequence[str]) -> float:
    return float(max(0, len(answer.split()) - min(len(text.split()) for text in references)))


def test_a_registered_metric_is_scored_for_its_answer_types_alone() -> None:
    metric("too_long", "summary", "label", scale=RAW, better="lower")(words_too_many)
    summary = GoldAnswer("summary", references=("the cat sat",))
    assert score_text("the cat sat down there", summary).scores["too_long"] == 2.0
    assert score_text("yes", GoldAnswer("label", choices=("yes", "no"), gold=0)).scores["too_long"] == 0.0
    assert "too_long" not in score_text("Paris", GoldAnswer("short", references=("Paris",))).scores


def test_its_scale_and_direction_are_those_it_registered() -> None:
    assert measure_of("too_long", "mean").scale is RAW
    metric("too_long", "summary", scale=RAW, better="lower")(words_too_many)
    metric("half", "summary")(lambda answer, references: 0.5)
    assert (measure_of("too_long", "mean").better, measure_of("too_long", "mean").sign) == ("lower", -1)
    assert measure_of("half", "mean", values=[0.5]).scale is SHARE
    assert measure_of("half", "mean").better == "higher"


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="metric 'em' is registered already"):
        metric("em", "short")(words_too_many)
