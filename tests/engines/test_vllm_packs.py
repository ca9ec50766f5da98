"""Choices scored by packs through the real vLLM's model on a CPU, against transformers row by row."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import TeamLoraConfig
from cme_bench.engines import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.inbox import Batches
from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.vllm_bench import Bench, ids

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    model = random_llama(
        0, hidden=128, heads=2, positions=160, vocab=384, spread=0.08, tokenizer=toy_tokenizer
    )
    return save_checkpoint(tmp_path_factory.mktemp("packs") / "base", model, toy_tokenizer)


@pytest.fixture(scope="module")
def adapters(base: Path) -> list[Path]:
    folders = [base.parent / "one", base.parent / "two"]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        config = TeamLoraConfig(r=4, num_experts=3, init="random", target_attention=True)
        get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def bench(base: Path, toy_tokenizer: PreTrainedTokenizerFast) -> Iterator[Bench]:
    """Packs, in a process that has had an engine without them."""
    plain = Bench(base, toy_tokenizer, 160)
    assert len(dict(plain.vllm(None).loglikelihood(questions()[:1]))) == 1
    plain.host.close()
    bench = Bench(base, toy_tokenizer, 160, packs=True)
    yield bench
    bench.host.close()


def questions() -> list[LoglikelihoodRequest]:
    """Questions with and without a header, choices of one token and of many, one empty, one twice."""
    header = ids(60, 1)
    contexts = [ids(n, n) for n in (1, 7, 40, 120)] + [header + ids(n, 50 + n) for n in (2, 9, 30)]
    choices = (ids(1, 2), ids(5, 3), (*ids(5, 3)[:3], 9), ids(20, 4), (), ids(1, 2))
    asked = [LoglikelihoodRequest(tuple((context, choice) for choice in choices)) for context in contexts]
    return [*asked, LoglikelihoodRequest(((ids(4, 5), (7, 8)), (ids(9, 6), (7, 8))))]


def assert_alike(engine: Any, reference: Any, asked: list[LoglikelihoodRequest]) -> None:
    wanted = dict(reference.loglikelihood(asked))
    found = dict(engine.serve(Batches([asked[:3], asked[3:]])))
    assert found.keys() == wanted.keys()
    for number, response in wanted.items():
        assert found[number].logprobs == pytest.approx(response.logprobs, abs=1e-4), number
        assert found[number].greedy == response.greedy, number


def test_packs_and_vllms_own_way_are_alike_with_adapters_and_between_texts(
    bench: Bench, adapters: list[Path]
) -> None:
    asked = questions()
    for adapter in (adapters[0], None, adapters[1]):
        engine = bench.vllm(adapter)
        assert_alike(engine, bench.transformers(adapter), asked)
        assert bench.host.packs
        distinct = sum(len(c) for r in asked for c in {c for c, _ in r.rows}) + sum(
            len(t) for r in asked for _, t in r.rows
        )
        assert 0 < engine.stats.tokens_computed < distinct
        assert engine.stats.requests == len(asked)
        texts = [GenerateRequest(ids(12, 8), 6), GenerateRequest(ids(70, 9), 6)]
        expected = dict(bench.transformers(adapter).generate(texts))
        assert {n: r.text for n, r in engine.generate(texts)} == {n: r.text for n, r in expected.items()}
        assert_alike(engine, bench.transformers(adapter), asked[::-1])
