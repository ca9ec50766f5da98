"""From seconds to rates and ratios."""

from __future__ import annotations

import pytest

from cme_bench.experiments.efficiency.train_step import train_metrics
from cme_bench.experiments.efficiency.workloads import Workloads, inference_metrics

WORKLOADS = Workloads(requests=10, prompt=20, new=5)


def test_rates_are_medians_and_decoding_is_what_follows_the_prefill() -> None:
    rates = WORKLOADS.rates({"single": [0.5, 9.0, 0.1], "prefill": [2.0] * 3, "batch": [4.0] * 3})
    assert rates == {
        "single_ms_token": pytest.approx(100.0),
        "prefill_tokens_s": pytest.approx(100.0),
        "batch_tokens_s": pytest.approx(12.5),
        "decode_tokens_s": pytest.approx(20.0),
    }


def test_a_batch_as_fast_as_its_prefill_has_no_rate_of_decoding() -> None:
    assert "decode_tokens_s" not in WORKLOADS.rates({"single": [1.0], "prefill": [2.0], "batch": [2.0]})


def test_ratios_are_paired_by_round() -> None:
    slow = {"single": [1.0, 2.0, 3.0], "prefill": [1.0] * 3, "batch": [2.0] * 3}
    fast = {"single": [0.5, 2.0, 0.9], "prefill": [0.5] * 3, "batch": [1.0] * 3}
    found = inference_metrics({"a": fast, "b": slow}, WORKLOADS, {"a_over_b": ("a", "b"), "no": ("a", "c")})
    assert found["a_over_b_single"] == 0.5
    assert found["a_over_b_batch"] == 0.5
    assert not any(name.startswith("no_") for name in found)


def test_prompts_depend_on_the_seed_alone() -> None:
    first = WORKLOADS.prompts(3, 1, 100)
    assert first == WORKLOADS.prompts(3, 1, 100) != WORKLOADS.prompts(3, 2, 100)
    assert all(len(prompt) == 20 and min(prompt) >= 3 and max(prompt) < 100 for prompt in first)


def test_training_ratios_are_medians_of_rounds() -> None:
    def one(seconds: float, peak: int) -> dict[str, object]:
        return {"seconds": [seconds, 10 * seconds, seconds], "peak_bytes": peak}

    rounds = [{"a": one(1.0, 2**30), "b": one(2.0, 2**31)}, {"a": one(3.0, 2**30), "b": one(4.0, 2**31)}]
    found = train_metrics(rounds, {"a_over_b": ("a", "b")})
    assert (found["a_ms"], found["b_peak_gib"]) == (2000.0, 2.0)
    assert found["a_over_b_time"] == 0.625
    assert found["a_over_b_memory"] == 0.5
