"""Packs that are started before the last one is read: the same answers, and none is lost by a failure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import TeamLoraConfig
from cme_bench.engines.base import LoglikelihoodRequest, LoglikelihoodResponse, Request, Response, TokenIds
from cme_bench.engines.hf.batching import PACK_PARAMETERS, base_size, free_memory, plan_limits
from cme_bench.engines.hf.engine import HFEngine
from cme_bench.engines.hf.work import Work
from cme_bench.engines.inbox import Batches


def score_all(engine: HFEngine, asked: list[LoglikelihoodRequest]) -> list[LoglikelihoodResponse]:
    return [response for _, response in sorted(engine.loglikelihood(asked), key=lambda pair: pair[0])]


@pytest.fixture
def questions(make_ids: Callable[[int], TokenIds]) -> list[LoglikelihoodRequest]:
    """Twelve questions of three choices below one header."""
    header = make_ids(30)
    contexts = [header + make_ids(12) for _ in range(12)]
    return [LoglikelihoodRequest(tuple((c, make_ids(n)) for n in (1, 2, 4))) for c in contexts]


def small_packs(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, ahead: int) -> HFEngine:
    engine = HFEngine(model, tokenizer, tokens_per_batch=64)
    engine.ahead = ahead
    assert engine.rowwise_because is None
    return engine


@pytest.mark.parametrize("ahead", [1, 3])
def test_answers_do_not_depend_on_it(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    questions: list[LoglikelihoodRequest],
    ahead: int,
) -> None:
    expected = score_all(small_packs(tiny_model, toy_tokenizer, 0), questions)
    assert score_all(small_packs(tiny_model, toy_tokenizer, ahead), questions) == expected
    turned = score_all(small_packs(tiny_model, toy_tokenizer, ahead), questions[::-1])
    assert turned[::-1] == expected


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_what_was_computed_before_a_failure_comes_out(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    questions: list[LoglikelihoodRequest],
    monkeypatch: pytest.MonkeyPatch,
    ahead: int,
) -> None:
    engine = small_packs(tiny_model, toy_tokenizer, ahead)
    forward, calls = tiny_model.forward, 0

    def fails_late(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise ValueError("the fourth pack")
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny_model, "forward", fails_late)
    found = []
    with pytest.raises(ValueError, match="the fourth pack"):
        for numbered in engine.loglikelihood(questions):
            found.append(numbered)
    calls = 0
    wanted = []
    with pytest.raises(ValueError, match="the fourth pack"):
        engine.ahead = 0
        for numbered in engine.loglikelihood(questions):
            wanted.append(numbered)
    assert found == wanted
    assert found, "three packs answered something"


def test_a_pack_of_a_small_model_holds_more(tiny_model: LlamaForCausalLM) -> None:
    config, cuda = tiny_model.config, torch.device("cuda")
    sizes = [
        plan_limits(config, cuda, 1 << 20, parameters).pack_tokens
        for parameters in (135_000_000, PACK_PARAMETERS, 7_000_000_000)
    ]
    assert sizes == [65_536, 8192, 8192]
    assert plan_limits(config, cuda, 10_000, 135_000_000).pack_tokens == 10_000
    assert plan_limits(config, torch.device("cpu"), 1 << 20, 135_000_000).pack_tokens == 1024
    sizes = (2 * PACK_PARAMETERS, PACK_PARAMETERS, PACK_PARAMETERS // 2, 1)
    forwards = [plan_limits(config, cuda, 1 << 20, size).forward_tokens for size in sizes]
    assert forwards == [1024, 1024, 2048, 8192]  # a forward costs as much as an eighth of a pack


def test_much_free_memory_lets_a_pack_read_more_logits(tiny_model: LlamaForCausalLM) -> None:
    config, words = tiny_model.config, tiny_model.config.vocab_size
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    scored = [plan_limits(config, cuda, 1 << 20, free=free).pack_scored for free in (0, 1 << 34, 1 << 36)]
    assert scored == [(1 << 28) // words, (1 << 28) // words, (1 << 29) // words]
    assert plan_limits(config, cpu, 1 << 20, free=1 << 36).pack_scored == (1 << 25) // words
    assert free_memory(cpu) == 0


@pytest.mark.parametrize("config", [TeamLoraConfig(r=4), LoraConfig(r=4)], ids=["teamlora", "lora"])
def test_an_adapter_makes_no_pack_smaller(config: PeftConfig, tiny_model: LlamaForCausalLM) -> None:
    size = base_size(tiny_model)
    assert size == sum(parameter.numel() for parameter in tiny_model.parameters())
    adapted = get_peft_model(copy.deepcopy(tiny_model), config).get_base_model()
    assert sum(parameter.numel() for parameter in adapted.parameters()) > size
    assert base_size(adapted) == size


def test_the_floor_counts_products_alone(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    questions: list[LoglikelihoodRequest],
) -> None:
    work = Work.of(tiny_model)
    layers = sum(p.numel() for n, p in tiny_model.named_parameters() if "proj" in n)
    assert work == Work(layers, tiny_model.lm_head.weight.numel())
    engine = HFEngine(tiny_model, toy_tokenizer)
    score_all(engine, questions)
    extra = engine.stats.extra
    assert extra["flops"] >= 2 * work.body * engine.stats.tokens_computed
    assert 0 < extra["device_seconds"] <= extra["serving_seconds"]


def test_small_batches_are_answered_together_like_each_by_itself(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    questions: list[LoglikelihoodRequest],
) -> None:
    batches = [questions[:2], questions[2:5], questions[5:6], questions[6:]]
    apart = HFEngine(tiny_model, toy_tokenizer)
    expected = dict(apart.serve(Batches(batches)))
    together = HFEngine(tiny_model, toy_tokenizer)
    together.together = 240  # a question has 42 tokens and 7 of choices: batches of 5, and of 7
    answered: list[int] = []
    answer = together._answer

    def counted(requests: Sequence[Request]) -> Iterator[tuple[int, Response]]:
        answered.append(len(requests))
        return answer(requests)

    together._answer = counted  # type: ignore[method-assign]
    found = dict(together.serve(Batches(batches)))
    assert answered == [5, 7]
    assert found.keys() == expected.keys()
    for number, response in expected.items():
        assert found[number].logprobs == pytest.approx(response.logprobs, abs=1e-5)
