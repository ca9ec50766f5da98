"""Stored records: what is kept of a response, and lm-eval's metrics under our names."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cme_bench.engines.base import GenerateResponse, LoglikelihoodResponse
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import render_item
from cme_bench.scoring.items import metric_name, score_record
from cme_bench.scoring.record import Scored, StoredAnswer, StoredResponse, stored_response
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.suite import load_suite

SUITE = load_suite()


def task(name: str, **changes: Any) -> Task:
    spec = SUITE.tasks[name]
    changed = TaskSpec(spec.name, spec.path, {**spec.config, **changes}, spec.where)
    return build_task(changed, SUITE, mini_source())


def score(built: Task, response: StoredResponse, index: int = 0) -> Scored:
    item = render_item(built, index, resolve_format("plain", None, generated=False))
    return score_record(built.lm_eval, item.doc, item.instances, response)


def test_a_record_keeps_the_margin_of_the_best_choice() -> None:
    record = stored_response(LoglikelihoodResponse((-3.0, -1.5, -2.0), (False, True, False)))
    assert record == StoredResponse(logprobs=[-3.0, -1.5, -2.0], greedy=[False, True, False], margin=0.5)
    assert stored_response(LoglikelihoodResponse((-1.0,), (True,))).margin is None
    record = stored_response(GenerateResponse("yes", 2, "eos"))
    assert record == StoredResponse(text="yes", n_tokens=2, finish="eos")


def test_acc_is_the_best_sum_and_acc_char_the_best_per_character() -> None:
    built = task("cme_arc_easy_ll")
    doc = built.docs[0]
    choices = doc["choices"]["text"]
    gold = doc["choices"]["label"].index(doc["answerKey"])
    lengths = [len(choice) for choice in choices]
    for logprobs in ([-1.0 * (i != gold) - 1 for i in range(4)], [-2.0, -3.0, -5.0, -7.0]):
        by_length = [value / length for value, length in zip(logprobs, lengths, strict=True)]
        expected = {
            "acc": float(logprobs.index(max(logprobs)) == gold),
            "acc_char": float(by_length.index(max(by_length)) == gold),
        }
        record = StoredResponse(logprobs=logprobs, greedy=[False] * 4)
        assert score(built, record) == Scored(scores=expected)


def test_lm_evals_own_metrics_and_filters_get_our_names() -> None:
    built = task(
        "cme_rte",
        metadata={**SUITE.tasks["cme_rte"].metadata, "answer": None},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        filter_list=[
            {"name": "raw", "filter": [{"function": "take_first"}]},
            {
                "name": "word",
                "filter": [
                    {"function": "regex", "regex_pattern": "(yes|no)"},
                    {"function": "take_first"},
                ],
            },
        ],
    )
    assert score(built, StoredResponse(text="I say yes")).scores == {"em@raw": 0.0, "em@word": 1.0}


def test_generated_answers_carry_how_they_were_read() -> None:
    found = score(task("cme_rte"), StoredResponse(text="The answer is yes"))
    assert found.scores == {"acc": 1.0, "f1_macro": [0, 0], "answered": 1.0}
    assert found.answer == StoredAnswer("yes", "answer_is")


@pytest.mark.parametrize(
    ("name", "pipeline", "expected"),
    [("acc_norm", "none", "acc_char"), ("acc", "none", "acc"), ("exact_match", "x", "em@x")],
)
def test_names(name: str, pipeline: str, expected: str) -> None:
    assert metric_name(name, pipeline) == expected


def test_scores_are_plain_numbers() -> None:
    found = score(task("cme_rte_ll"), StoredResponse(logprobs=[-1.0, -2.0], greedy=[True, False]))
    assert found.scores.pop("f1_macro") == [task("cme_rte_ll").docs[0]["label"], 0]
    assert all(type(value) is float and not math.isnan(value) for value in found.scores.values())
