"""Scores of the transformers engine against each row computed alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.engines import LoglikelihoodRequest, LoglikelihoodResponse, TokenIds
from cme_bench.engines.hf import HFEngine
from cme_bench.util.errors import CmeError


def score_all(engine: HFEngine, requests: Sequence[LoglikelihoodRequest]) -> list[LoglikelihoodResponse]:
    found = list(engine.loglikelihood(requests))
    assert sorted(index for index, _ in found) == list(range(len(requests)))
    return [response for _, response in sorted(found, key=lambda pair: pair[0])]


def assert_same(found: LoglikelihoodResponse, expected: LoglikelihoodResponse) -> None:
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert found.greedy == expected.greedy


@pytest.fixture
def requests_of_all_shapes(make_ids: Callable[[int], TokenIds]) -> list[LoglikelihoodRequest]:
    """Random shapes, shared and own contexts, and the corner cases of one row."""
    source = random.Random(3)
    requests = []
    for _ in range(12):
        context = make_ids(source.randint(1, 40))
        lengths = [source.randint(1, 8) for _ in range(source.randint(1, 5))]
        requests.append(LoglikelihoodRequest(tuple((context, make_ids(n)) for n in lengths)))
    requests.append(
        LoglikelihoodRequest(tuple((make_ids(source.randint(1, 30)), make_ids(2)) for _ in range(3)))
    )
    context, choice = make_ids(20), make_ids(5)
    requests.append(LoglikelihoodRequest(((context, choice), (context, choice[:2]), (context, choice[:1]))))
    requests.append(LoglikelihoodRequest(((make_ids(1), make_ids(1)), (make_ids(1), make_ids(30)))))
    requests.append(LoglikelihoodRequest(((context, ()), (context, choice))))
    requests.append(LoglikelihoodRequest(((context, ()),)))
    requests.append(LoglikelihoodRequest(((make_ids(60), make_ids(5)), (make_ids(1), make_ids(64)))))
    return requests


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("tokens_per_batch", [pytest.param(1, marks=pytest.mark.slow), 150, 100_000])
def test_every_family_equals_each_row_alone(
    family_model: Any,
    toy_tokenizer: PreTrainedTokenizerFast,
    requests_of_all_shapes: list[LoglikelihoodRequest],
    reference: Callable[[Any, LoglikelihoodRequest], LoglikelihoodResponse],
    tokens_per_batch: int,
    plain: bool,
) -> None:
    engine = HFEngine(family_model, toy_tokenizer, tokens_per_batch=tokens_per_batch, plain=plain)
    assert engine.max_length == 65
    assert engine.rowwise_because == ("asked for" if plain else None)
    for request, found in zip(requests_of_all_shapes, score_all(engine, requests_of_all_shapes), strict=True):
        assert_same(found, reference(family_model, request))


def test_order_of_requests_does_not_matter(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    requests_of_all_shapes: list[LoglikelihoodRequest],
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer, tokens_per_batch=200)
    straight = score_all(engine, requests_of_all_shapes)
    order = random.Random(5).sample(range(len(straight)), len(straight))
    shuffled = score_all(engine, [requests_of_all_shapes[i] for i in order])
    for place, index in enumerate(order):
        assert_same(shuffled[place], straight[index])


def test_the_models_own_greedy_tokens_are_greedy(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, make_ids: Callable[[int], TokenIds]
) -> None:
    context = make_ids(10)
    prompt = torch.tensor([context])
    output = tiny_model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4)
    best = tuple(output[0, 10:].tolist())
    wrong = (*best[:-1], (best[-1] + 1) % 256)
    request = LoglikelihoodRequest(((context, best), (context, wrong)))
    assert score_all(HFEngine(tiny_model, toy_tokenizer), [request])[0].greedy == (True, False)


def test_a_row_past_the_limit_is_named_before_anything_runs(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, make_ids: Callable[[int], TokenIds]
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer)
    fits = LoglikelihoodRequest(((make_ids(60), make_ids(4)),))
    too_long = LoglikelihoodRequest(((make_ids(3), make_ids(4)), (make_ids(60), make_ids(6))))
    with pytest.raises(ValueError, match=r"request 1, choice 1: 60 \+ 6 tokens exceed max_length 65"):
        engine.loglikelihood([fits, too_long])
    with pytest.raises(ValueError, match="request 0, choice 0: the context is empty"):
        engine.loglikelihood([LoglikelihoodRequest((((), make_ids(2)),))])
    assert engine.stats.tokens_computed == 0


def test_equal_rows_are_computed_once_and_counted(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, make_ids: Callable[[int], TokenIds]
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer, plain=True)
    long, short = (make_ids(10), make_ids(3)), (make_ids(5), make_ids(1))
    requests = [LoglikelihoodRequest((long, short)), LoglikelihoodRequest((short, long, long))]
    first, second = score_all(engine, requests)
    assert second.logprobs == (first.logprobs[1], first.logprobs[0], first.logprobs[0])
    assert engine.stats.requests == 2
    assert engine.stats.tokens_computed == 12 + 5
    assert engine.stats.tokens_padding == 12 - 5
    assert engine.stats.tokens_rowwise == 3 * 12 + 2 * 5
    assert engine.stats.model_seconds > 0
    assert engine.stats.peak_memory_bytes > 0


def test_a_request_without_rows_and_no_requests(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer)
    assert score_all(engine, []) == []
    assert score_all(engine, [LoglikelihoodRequest(())]) == [LoglikelihoodResponse((), ())]


def test_an_adapter_of_peft_is_applied(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    requests_of_all_shapes: list[LoglikelihoodRequest],
    reference: Callable[[Any, LoglikelihoodRequest], LoglikelihoodResponse],
) -> None:
    torch.manual_seed(2)
    config = peft.LoraConfig(r=4, target_modules=["up_proj"], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(tiny_model), config).eval()
    request = requests_of_all_shapes[0]
    found = score_all(HFEngine(model, toy_tokenizer), [request])[0]
    assert_same(found, reference(model, request))
    assert found.logprobs != pytest.approx(reference(tiny_model, request).logprobs, abs=1e-3)


def test_nan_logits_name_the_request(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, make_ids: Callable[[int], TokenIds]
) -> None:
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.get_input_embeddings().weight[299] = float("nan")
    good = LoglikelihoodRequest(((make_ids(5), make_ids(2)),))
    bad = LoglikelihoodRequest(((make_ids(4), make_ids(2)), ((299, 1), make_ids(2))))
    with pytest.raises(CmeError, match="request 1, choice 1: the model's logits are NaN"):
        score_all(HFEngine(model, toy_tokenizer), [good, bad])
