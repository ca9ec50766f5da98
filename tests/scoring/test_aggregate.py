"""A task's results from its records: one pass, the last record of an item counts."""

from __future__ import annotations

import random
import statistics
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cme_bench.scoring.aggregate import TaskResult, task_result

SPEC = SimpleNamespace(name="t", domain="nli", dataset="d", primary="acc", output_type="generate_until")


def record(id_: int, acc: Any, *, truncated: int = 0, finish: str = "stop", rule: str = "label") -> Any:
    return {
        "id": id_,
        "scores": {"acc": acc, "answered": 1.0},
        "truncated": truncated,
        "response": {"text": "x", "finish": finish},
        "answer": {"text": "x", "rule": rule},
    }


def aggregate(records: Any, lm_task: Any = None) -> TaskResult:
    return task_result(SPEC, lm_task, records)


def test_means_and_shares_of_any_ids_in_any_order() -> None:
    source = random.Random(1)
    ids = source.sample(range(5000), 300)
    scores = {i: source.random() for i in ids}

    def records() -> Iterator[Any]:
        for i in ids:
            yield record(
                i,
                scores[i],
                truncated=i % 2,
                finish="length" if i % 3 == 0 else "eos",
                rule="none" if i % 5 == 0 else "label",
            )

    result = aggregate(records())
    assert (result.form, result.score.n) == ("generated", 300)
    assert result.score.value == pytest.approx(statistics.fmean(scores.values()))
    assert result.score.stderr == pytest.approx(statistics.stdev(scores.values()) / 300**0.5)
    assert result.quality == pytest.approx(
        {
            "truncated": sum(i % 2 for i in ids) / 300,
            "hit_length": sum(i % 3 == 0 for i in ids) / 300,
            "empty": sum(i % 5 == 0 for i in ids) / 300,
        }
    )


def test_the_last_record_of_an_item_counts() -> None:
    first = [record(i, 0.0, truncated=3, finish="length", rule="none") for i in range(4)]
    result = aggregate([*first, *(record(i, 1.0) for i in (3, 0, 2, 1))])
    assert (result.score.value, result.score.n) == (1.0, 4)
    assert result.quality == {"truncated": 0.0, "hit_length": 0.0, "empty": 0.0}
    again = aggregate([record(0, None), record(1, 1.0), record(0, 1.0)])
    assert (again.score.value, again.score.n) == (1.0, 2), "a number replaces what was none"


def test_scores_that_are_no_numbers_go_to_lm_eval_by_id() -> None:
    seen = []

    def f1(values: Any) -> float:
        seen.append(list(values))
        return 0.25

    lm_task = SimpleNamespace(aggregation=lambda: {"acc": f1})
    result = aggregate([record(7, (1, 0)), record(2, (1, 1))], lm_task)
    assert seen[0] == [(1, 1), (1, 0)]
    assert (result.score.value, result.score.n) == (0.25, 2)


def test_records_are_not_held() -> None:
    """At no time are more than a few of the records alive."""

    class Watched(dict[str, Any]):
        pass

    made: list[weakref.ref[Watched]] = []
    most = 0

    def records() -> Iterator[Any]:
        nonlocal most
        for i in range(200):
            one = Watched(record(i, 1.0))
            made.append(weakref.ref(one))
            most = max(most, sum(ref() is not None for ref in made))
            yield one

    assert aggregate(records()).score.n == 200
    assert most <= 3
