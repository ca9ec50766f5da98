"""Ties and near ties: what counts as one, for which metric, and the shares of a task."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from cme_bench.harness.task_result import task_result
from cme_bench.scoring import ties
from cme_bench.scoring.record import Record, Scored, StoredResponse, scored_item
from cme_bench.scoring.ties import NOISE, Decision, decision

CHOICES = ["a", "bbbb", "cc"]
TASK = SimpleNamespace(
    OUTPUT_TYPE="multiple_choice",
    doc_to_choice=lambda doc: doc["choices"],
    aggregation=dict,
    higher_is_better=dict,
)
SPEC = SimpleNamespace(
    in_cme=True, name="t", domain="nli", dataset="d", primary="acc", output_type="multiple_choice"
)


def record(*logprobs: float, id_: int = 0, choices: Any = CHOICES, **scores: float) -> Record:
    response = StoredResponse(logprobs=list(logprobs), greedy=[False] * len(logprobs), margin=None)
    scored = Scored(scores={"acc": 1.0} | scores)
    return scored_item(id_, scored, response, choices=["x"] * len(logprobs), doc={"choices": choices})


@pytest.mark.parametrize(
    ("logprobs", "metric", "expected"),
    [
        ((-3.0, -2.0, -2.0), "acc", Decision.TIE),
        ((-2.0, -2.0, -1.0), "acc", Decision.CLEAR),  # a tie of those that lost
        ((-2.0, -2.1, -9.0), "acc", Decision.NEAR),
        ((-2.0, -2.2, -9.0), "acc", Decision.CLEAR),
        ((-2.0, -8.0, -9.0), "acc_char", Decision.TIE),  # -2 a character each
        ((-2.0, -2.0, -9.0), "acc_char", Decision.CLEAR),
        ((-2.0, -7.9, -9.0), "acc_char", Decision.NEAR),  # it could lose 0.1
        ((-2.0, -7.2, -9.0), "acc_char", Decision.CLEAR),
        ((-np.inf, -np.inf, -np.inf), "acc", Decision.TIE),
        ((-1.0,), "acc", Decision.NONE),
    ],
)
def test_the_lead_of_the_choice_that_counts(
    logprobs: tuple[float, ...], metric: str, expected: Decision
) -> None:
    assert decision(TASK, record(*logprobs), metric, 0.15) is expected


def test_the_quick_margin_of_finite_numbers_is_the_slow_one() -> None:
    drawn = random.Random(0)
    for _ in range(2000):
        n = drawn.randint(2, 6)
        logprobs = [drawn.choice([-drawn.expovariate(0.1), -1.5, -3.0, 0.0]) for _ in range(n)]
        lengths = [float(drawn.randint(1, 4)) for _ in range(n)]
        quick = ties._finite_margin(logprobs, lengths)
        assert quick.hex() == ties._any_margin(logprobs, lengths).hex(), (logprobs, lengths)


def test_numbers_that_are_not_finite_and_empty_choices_go_the_slow_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(ties, "_finite_margin")
    assert decision(TASK, record(-np.inf, -2.0), "acc", 0.15) is Decision.CLEAR
    assert decision(TASK, record(-1.0, -2.0, choices=["", "b"]), "acc_char", 0.15) is Decision.CLEAR


def test_bytes_are_not_characters() -> None:
    item = record(-2.0, -2.0, choices=["é", "e"])
    assert decision(TASK, item, "acc_char", 0.15) is Decision.TIE
    assert decision(TASK, item, "acc_byte", 0.15) is Decision.CLEAR


def test_of_mutual_information_only_the_answers_count() -> None:
    item = record(-2.0, -3.0, -1.0, -1.0, acc_mutual_info=0.0)
    assert decision(TASK, item, "acc", 0.15) is Decision.CLEAR


def test_texts_and_single_likelihoods_are_no_choices() -> None:
    other = SimpleNamespace(OUTPUT_TYPE="loglikelihood")
    assert decision(other, record(-2.0, -2.0), "acc", 0.15) is Decision.NONE
    text = structs.replace(record(-1.0), response=StoredResponse(text="x", n_tokens=1, finish="stop"))
    assert decision(TASK, text, "acc", 0.15) is Decision.NONE


@pytest.mark.parametrize(("dtype", "near"), [("bfloat16", 3), ("float32", 1), (None, 1)])
def test_shares_of_a_task(dtype: str | None, near: int) -> None:
    records = [record(-1.0, -1.0, id_=0), record(-1.0, -1.1, id_=1), record(-1.01, -1.0, id_=2)]
    records += [record(-1.0, -5.0, id_=i) for i in range(3, 8)]
    records.append(records[3])  # the last one counts
    quality = task_result(SPEC, TASK, records, dtype=dtype).quality
    assert (quality["ties"], quality["near_ties"]) == (1 / 8, near / 8)


def test_finer_types_have_fewer_near_ties() -> None:
    assert NOISE["float32"] < NOISE["float16"] < NOISE["bfloat16"]
