"""The log of a vLLM engine's steps."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from cme_bench.experiments.efficiency import vllm_steps
from cme_bench.experiments.efficiency.vllm_steps import start_log, stop_log, summary


class Output:
    def get_output(self) -> str:
        time.sleep(0.02)
        return "answer"


class Runner:
    def execute_model(self, scheduled: Any) -> None:
        time.sleep(0.01)

    def sample_tokens(self, grammar: Any) -> Output:
        return Output()


def scheduled(*tokens: int) -> Any:
    named = {str(number): count for number, count in enumerate(tokens)}
    return SimpleNamespace(total_num_scheduled_tokens=sum(tokens), num_scheduled_tokens=named)


def test_a_step_says_its_tokens_and_where_its_time_went() -> None:
    worker = SimpleNamespace(model_runner=Runner())
    start_log(worker)
    for step in (scheduled(256, 3), scheduled(), scheduled(1, 1)):
        worker.model_runner.execute_model(step)
        if step.total_num_scheduled_tokens:
            assert worker.model_runner.sample_tokens(None).get_output() == "answer"
    first, second = stop_log(worker)
    assert (first["tokens"], first["requests"], second["tokens"], second["requests"]) == (259, 2, 2, 2)
    assert first["at"] == 0 < second["at"]
    for row in (first, second):
        assert row["execute"] >= 10 > row["cpu"]
        assert row["wait"] >= 20 > row["sample"]


def test_a_step_says_how_often_it_asked_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter((3, 5, 5, 5))
    monkeypatch.setattr(vllm_steps, "_segments", lambda: next(asked))
    worker = SimpleNamespace(model_runner=Runner())
    start_log(worker)
    for _ in range(2):
        worker.model_runner.execute_model(scheduled(1))
    assert [row["segments"] for row in stop_log(worker)] == [2, 0]


def test_nothing_is_noted_any_more_after_the_log() -> None:
    runner = Runner()
    start_log(SimpleNamespace(model_runner=runner))
    stop_log(SimpleNamespace(model_runner=runner))
    assert not vars(runner)


def test_decode_steps_are_summed_up_apart() -> None:
    rows = [
        {"at": 0.0, "tokens": 512, "requests": 2, "wait": 4.0},
        {"at": 0.01, "tokens": 2, "requests": 2, "wait": 1.0},
        {"at": 0.012, "tokens": 2, "requests": 2, "wait": 3.0},
    ]
    found = summary(rows)
    assert found["prefill"] == {"steps": 1, "tokens": 512, "requests": 2, "wait": 4.0, "period": 10.0}
    assert found["decode"] == {
        "steps": 2,
        "tokens": 2,
        "requests": 2,
        "wait": 2.0,
        "period": pytest.approx(2.0),
    }
