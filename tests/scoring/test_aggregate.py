"""A task's results from its records: one pass, the last record of an item counts."""

from __future__ import annotations

import math
import random
import statistics
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from cme_bench.harness.task_result import task_result
from cme_bench.scoring.aggregate import TaskResult, summarize
from cme_bench.scoring.record import Record, Scored, StoredAnswer, StoredResponse, scored_item

SPEC = SimpleNamespace(
    in_cme=True, name="t", domain="nli", dataset="d", primary="acc", output_type="generate_until"
)


def record(id_: int, acc: Any, *, truncated: int = 0, finish: str = "stop", rule: str = "label") -> Any:
    scored = Scored(scores={"acc": acc, "answered": 1.0}, answer=StoredAnswer("x", rule))
    return scored_item(id_, scored, StoredResponse(text="x", finish=finish), truncated=truncated)


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

    class Watched(Record, frozen=True, weakref=True):
        pass

    made: list[weakref.ref[Watched]] = []
    most = 0

    def records() -> Iterator[Any]:
        nonlocal most
        for i in range(200):
            one = Watched(**structs.asdict(record(i, 1.0)))
            made.append(weakref.ref(one))
            most = max(most, sum(ref() is not None for ref in made))
            yield one

    assert aggregate(records()).score.n == 200
    assert most <= 3


def lm_task(aggregation: str, metric: str = "acc", *, higher: bool | None = True) -> Any:
    from lm_eval.api.registry import get_aggregation

    return SimpleNamespace(
        aggregation=lambda: {metric: get_aggregation(aggregation)},
        higher_is_better=lambda: {metric: higher},
        _filters=[SimpleNamespace(name="none"), SimpleNamespace(name="strict@1")],
    )


def test_aggregations_over_numbers_are_lm_evals() -> None:
    """A perplexity is no mean of log-likelihoods, and a median no mean."""
    scores = [-1.0, -2.0, -6.0]
    found = aggregate([record(i, s) for i, s in enumerate(scores)], lm_task("perplexity"))
    assert found.score.value == pytest.approx(math.exp(3))
    assert (found.form, found.measure.aggregation) == (
        "generated, perplexity, lower is better",
        "perplexity",
    )
    assert aggregate([record(i, s) for i, s in enumerate([0, 0, 1])], lm_task("median")).score.value == 0
    odd = SimpleNamespace(aggregation=lambda: {"acc": max}, higher_is_better=dict, _filters=[])
    assert aggregate([record(i, s) for i, s in enumerate([0.1, 0.3])], odd).score.value == 0.3


def test_an_item_without_a_metric_does_not_count_in_it() -> None:
    records = [record(i, 1.0) for i in range(4)]
    for number in (1, 2):
        records[number] = structs.replace(records[number], scores={"other": 0.5})
    found = aggregate(records)
    assert {name: (e.value, e.n) for name, e in found.metrics.items()} == {
        "acc": (1.0, 2),
        "answered": (1.0, 2),
        "other": (0.5, 2),
    }
    again = aggregate(
        [record(0, 1.0), structs.replace(record(0, 1.0), scores={"other": 0.0}), record(1, 1.0)]
    )
    assert again.metrics["acc"].n == 1, "what is no longer scored does not count either"


def test_a_number_that_is_none_makes_no_mean_but_a_nanmean() -> None:
    records = [record(0, 1.0), record(1, None), record(2, 0.0)]
    assert math.isnan(aggregate(records, lm_task("mean")).score.value)
    assert aggregate(records, lm_task("nanmean")).score.value == 0.5


def test_names_with_a_filter_and_with_an_at() -> None:
    task = lm_task("median", "pass@1")
    records = [
        structs.replace(record(i, 0.0), scores={"pass@1": i, "pass@1@strict@1": 2 * i}) for i in range(3)
    ]
    found = aggregate(records, task)
    assert found.origins == {"pass@1": ("pass@1", "none"), "pass@1@strict@1": ("pass@1", "strict@1")}
    assert {name: e.value for name, e in found.metrics.items()} == {"pass@1": 1, "pass@1@strict@1": 2}


def test_only_bounded_scales_of_one_kind_have_a_mean() -> None:
    def result(task: str, aggregation: str, scores: list[float]) -> TaskResult:
        spec = SimpleNamespace(**vars(SPEC) | {"name": task, "in_cme": False})
        return task_result(spec, lm_task(aggregation), [record(i, s) for i, s in enumerate(scores)])

    results = [
        result("a", "mean", [0.0, 1.0]),
        result("b", "mean", [1.0, 1.0]),
        result("p", "perplexity", [-1.0, -1.0]),
        result("q", "perplexity", [-2.0, -2.0]),
    ]
    summaries = summarize(results)
    assert list(summaries) == ["other generated", "other generated, perplexity, lower is better"]
    first, second = summaries.values()
    assert first.average is not None and first.average.value == 0.75
    assert second.average is None
    assert {name: e.value for name, e in second.domains.items()} == pytest.approx(
        {"p": math.e, "q": math.e**2}
    )
