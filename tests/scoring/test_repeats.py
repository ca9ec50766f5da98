"""Several answers to an item: pass@k, the majority's answer, and how answers become one record."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from cme_bench.scoring.record import Record, StoredAnswer, StoredResponse
from cme_bench.scoring.repeats import RepeatColumns, ks, majority, merged, pass_at_k, voted_answer


def record(id_: int, repeat: int, text: str, acc: float, **more: Any) -> Record:
    rule = "none" if not text else "answer_is"
    return Record(
        id=id_,
        key="k",
        task="t",
        scores={"acc": acc},
        answer=StoredAnswer(text, rule),
        response=StoredResponse(text=text, finish="eos", n_tokens=1),
        target="yes",
        truncated=0,
        prompt="",
        choices=[],
        doc={},
        repeat=repeat,
        **more,
    )


@pytest.mark.parametrize(("n", "correct"), [(n, c) for n in range(1, 7) for c in range(n + 1)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n: int, correct: int) -> None:
    answers = [True] * correct + [False] * (n - correct)
    for k in range(1, n + 1):
        draws = list(itertools.combinations(answers, k))
        assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    product = 1 - np.prod(1 - 2 / np.arange(n - correct + 1, n + 1)) if n - correct >= 2 else 1.0
    if n >= 2:  # the form in which Chen et al. print it
        assert pass_at_k(n, correct, 2) == pytest.approx(product)


def test_more_draws_than_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="pass@4 of 3 answers"):
        pass_at_k(3, 1, 4)
    assert [ks(n) for n in (1, 2, 3, 5, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 5], [1, 2, 4, 8]]


@pytest.mark.parametrize(
    ("votes", "score"),
    [
        ([("a", 1.0), ("a", 1.0), ("b", 0.0)], 1.0),
        ([("a", 1.0), ("b", 0.0), ("b", 0.0)], 0.0),
        ([("a", 1.0), ("b", 0.0)], 0.5),
        ([("a", 1.0), ("b", 0.0), ("c", 0.0)], pytest.approx(1 / 3)),
        ([(None, 0.0), (None, 0.0), ("a", 1.0)], 1.0),
        ([(None, 0.0), (None, 0.0)], 0.0),
        ([("a", 1.0), ("a", 1.0), ("b", 0.0), ("b", 0.0), ("c", 0.0)], 0.5),
    ],
)
def test_the_majority_counts_and_ties_share(votes: list[tuple[str | None, float]], score: float) -> None:
    for order in itertools.permutations(votes):
        assert majority(order) == score


def test_votes_are_compared_without_case_and_blanks() -> None:
    assert voted_answer(record(0, 0, "A cat", 1.0), "short", "none") == "cat"
    assert voted_answer(record(0, 0, "x - 1", 1.0), "math", "none") == "x-1"
    assert voted_answer(record(0, 0, "", 0.0), "label", "none") is None
    texts = {"strict": "[invalid]", "loose": "7"}
    filtered = replace(record(0, 0, "", 0.0), answer=None, filtered=texts)
    assert voted_answer(filtered, None, "strict") is None
    assert voted_answer(filtered, None, "loose") == "7"


def test_columns_hold_means_passes_and_majorities() -> None:
    columns = RepeatColumns("acc", "label", "none", 3)
    answers = {0: ["yes", "yes", "no"], 1: ["no", "no", "no"], 2: ["yes", "", ""]}
    for id_, texts in answers.items():
        for repeat, text in enumerate(texts):
            columns.add(record(id_, repeat, "stale", 0.5))
            columns.add(record(id_, repeat, text, float(text == "yes")))
            columns.add(record(id_, 3 + repeat, "yes", 1.0))  # of an earlier run with more repeats
    assert columns.item_means("acc").tolist() == pytest.approx([2 / 3, 0, 1 / 3])
    assert columns.majorities().tolist() == [1.0, 0.0, 1.0]
    passes = columns.passes()
    assert list(passes) == ["pass@1", "pass@2", "pass@3"]
    assert passes["pass@2"].tolist() == pytest.approx([1.0, 0.0, 2 / 3])
    assert columns.quality()["empty"] == pytest.approx(2 / 9)


def test_answers_become_one_record() -> None:
    three = [record(4, repeat, "yes", acc) for repeat, acc in ((2, 0.0), (0, 1.0), (1, 1.0))]
    one = merged(three)
    assert (one.id, one.repeat, one.repeats) == (4, 0, 3)
    assert one.scores == {"acc": pytest.approx(2 / 3)}
    assert merged(three[1:2]) is three[1]
    with_filters = [*three[1:], record(4, 2, "yes", 0.0, combined={"acc": 1.0})]
    assert merged(with_filters).scores == {"acc": 1.0}


def test_the_order_of_arrival_changes_no_digit() -> None:
    records = [
        record(i, r, "ab"[(i + r) % 2], ((7 * i + 3 * r) % 10) / 10) for i in range(10) for r in (0, 1, 2)
    ]
    right = [replace(each, scores={"acc": float(each.id % 3 >= each.repeat)}) for each in records]
    for some in (records, right):
        found = []
        for order in (some, some[::-1], some[1::2] + some[::2]):
            columns = RepeatColumns("acc", "label", "", 3)
            for each in order:
                columns.add(each)
            passes = {name: values.tolist() for name, values in columns.passes().items()}
            found.append((passes, columns.majorities().tolist(), columns.item_means("acc").tolist()))
        assert found[0] == found[1] == found[2]
