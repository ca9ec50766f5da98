"""Sampled answers and thoughts of the real vLLM on a CPU, for a model whose every distribution is known."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats
from transformers import AutoTokenizer

from cme_bench.engines import GenerateRequest, GenerateResponse, Sampling, Thought
from cme_bench.prompts.encode import Encoder
from tests.support.greedy import generate_all
from tests.support.scripted import END, THINKING, save_scripted
from tests.support.vllm_bench import Bench

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

DICE = {"a1": 0.4, "a2": 0.3, "a3": 0.2, "a4": 0.1}
TABLE: dict[str, Any] = {
    **THINKING,
    "stop": END,
    "plain": "yes",
    "quiet": END,
    "dice": DICE,
    **{name: DICE | {END: 0.5} for name in DICE},
}
MANY = 1500


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = save_scripted(tmp_path_factory.mktemp("vllm"), TABLE, None, positions=160)
    made = Bench(folder, AutoTokenizer.from_pretrained(folder), 150)
    yield made
    made.host.close()


def ids(bench: Bench, text: str) -> tuple[int, ...]:
    return tuple(bench.tokenizer.encode(text, add_special_tokens=False))


def answers(engine: Any, requests: Sequence[GenerateRequest]) -> list[GenerateResponse]:
    return generate_all(engine, requests)


def test_thoughts_are_those_of_transformers(bench: Bench) -> None:
    encoder = Encoder(bench.tokenizer)
    after, closing = (encoder.encode_behind(text) for text in ("\n\n", "\n</think>\n\n"))
    asked = []
    for budget in (50, 4, 3, 1, 0):
        for prompt, opened in (("start", False), ("start<think>", True), ("plain", False), ("quiet", True)):
            thought = Thought(budget, "<think>", "</think>", opened, after, closing)
            asked.append(GenerateRequest(ids(bench, prompt), 2, ("stop", "\n"), thought=thought))
    found = answers(bench.vllm(), asked)
    assert found == answers(bench.transformers(), asked)
    assert {(f.text, f.thought_end) for f in found} == {
        ("yes", "closed"),
        ("yes", "budget"),
        ("yes", None),
        ("", "unclosed"),
        ("<think>one", None),  # without a budget it is not asked to think
    }


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(0.7, top_p=0.8), Sampling(1.5, top_k=3)], ids=str
)
def test_both_engines_draw_from_the_distribution(bench: Bench, sampling: Sampling) -> None:
    weights = {name: share ** (1 / sampling.temperature) for name, share in DICE.items()}
    total = sum(weights.values())
    kept, before = {}, 0.0
    for rank, (name, weight) in enumerate(weights.items()):
        if before < sampling.top_p and not (sampling.top_k and rank >= sampling.top_k):
            kept[name] = weight
        before += weight / total
    assert 1 < len(kept) <= 4
    asked = [
        GenerateRequest(ids(bench, "dice"), 1, sampling=replace(sampling, seed=seed)) for seed in range(MANY)
    ]
    for engine in (bench.vllm(), bench.transformers()):
        counts = Counter(response.text for response in answers(engine, asked))
        assert set(counts) == set(kept)
        wanted = [MANY * weight / sum(kept.values()) for weight in kept.values()]
        assert stats.chisquare([counts[name] for name in kept], wanted).pvalue > 1e-3


def test_answers_do_not_depend_on_what_else_is_asked(bench: Bench) -> None:
    asked = [
        GenerateRequest(ids(bench, "dice" * (1 + seed % 3)), 6, sampling=Sampling(1.0, 0.95, seed=seed))
        for seed in range(24)
    ]
    together = answers(bench.vllm(), asked)
    assert len({response.text for response in together}) > 10
    assert answers(bench.vllm(), asked[::-1]) == together[::-1]
    assert [answers(bench.vllm(), [one])[0] for one in asked[:8]] == together[:8]
