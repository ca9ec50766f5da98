"""Greedy decoding after a shared header against one prompt at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.engines import GenerateRequest, TokenIds
from cme_bench.engines.hf import HFEngine
from cme_bench.engines.plan import PlanLimits, plan_groups
from tests.support.greedy import ends_often, generate_all, tokens_alone
from tests.support.tries import contexts


@pytest.fixture
def asked(make_ids: Callable[[int], TokenIds]) -> list[GenerateRequest]:
    """Two headers of 20 tokens with questions of all lengths, and two prompts on their own."""
    shapes = [(1, 12), (20, 3), (7, 20), (5, 1), (9, 9)]
    found = []
    for _ in range(2):
        header = make_ids(20)
        found += [GenerateRequest(header + make_ids(length), new) for length, new in shapes]
    return [*found, GenerateRequest(make_ids(3), 8), GenerateRequest(make_ids(30), 8)]


def sharing_engine(model: Any, tokenizer: Any, **settings: Any) -> HFEngine:
    engine = HFEngine(model, tokenizer, **settings)
    engine.limits.forward_tokens = 8  # headers in these tests are short
    assert engine.rowwise_because is None
    return engine


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 100_000])
def test_every_family_equals_one_prompt_at_a_time(
    family_model: Any,
    toy_tokenizer: PreTrainedTokenizerFast,
    asked: list[GenerateRequest],
    tokens_per_batch: int,
) -> None:
    model, end = ends_often(family_model, asked[2])
    engine = sharing_engine(model, toy_tokenizer, tokens_per_batch=tokens_per_batch)
    for request, found in zip(asked, generate_all(engine, asked), strict=True):
        expected = tokens_alone(model, request)
        ended = expected[-1] in (end, 271)
        assert found.n_tokens == len(expected)
        assert found.finish == ("eos" if ended else "length")
        text = toy_tokenizer.decode(expected[:-1] if ended else expected, skip_special_tokens=True)
        assert found.text == text


def test_a_header_is_computed_once(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, asked: list[GenerateRequest]
) -> None:
    engine = sharing_engine(tiny_model, toy_tokenizer)
    responses = generate_all(engine, asked)
    fed = sum(len(a.prompt) + r.n_tokens - 1 for a, r in zip(asked, responses, strict=True))
    assert engine.stats.tokens_rowwise == fed
    assert engine.stats.tokens_computed == fed - 2 * 4 * 20
    assert engine.stats.tokens_generated == sum(r.n_tokens for r in responses)


def test_plain_and_shared_agree_with_stop_strings(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, asked: list[GenerateRequest]
) -> None:
    plain = HFEngine(tiny_model, toy_tokenizer, plain=True)
    texts = [response.text for response in generate_all(plain, asked)]
    stopping = [
        GenerateRequest(request.prompt, request.max_new_tokens, (text[2:4],) if len(text) > 4 else ())
        for request, text in zip(asked, texts, strict=True)
    ]
    engine = sharing_engine(tiny_model, toy_tokenizer)
    assert generate_all(engine, stopping) == generate_all(plain, stopping)


def test_a_batch_too_large_is_halved(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    asked: list[GenerateRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = copy.copy(tiny_model)
    expected = generate_all(sharing_engine(model, toy_tokenizer), asked)
    forward = tiny_model.forward

    def small_memory(*args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **kwargs)

    engine = sharing_engine(tiny_model, toy_tokenizer)
    generate_all(engine, asked[:1])  # what the engine tries out of a model, it tries on three short rows
    monkeypatch.setattr(tiny_model, "forward", small_memory)
    assert generate_all(engine, asked) == expected


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contexts(), st.integers(0, 30))
def test_groups_hold_every_prompt_once_and_share_what_they_say(
    prompts: list[TokenIds], forward_tokens: int
) -> None:
    limits = PlanLimits(100, 100, 10, forward_tokens, 40)
    groups = list(plan_groups(prompts, limits))
    assert sorted(i for indices, _ in groups for i in indices) == list(range(len(prompts)))
    for indices, prefix in groups:
        assert prefix <= 40
        assert len({prompts[i][:prefix] for i in indices}) == 1
        assert all(len(prompts[i]) > prefix for i in indices)
        assert not prefix or prefix * (len(indices) - 1) >= forward_tokens


def test_headers_within_a_header_are_shared_by_subject() -> None:
    task, subjects = tuple(range(12)), [tuple(range(100 * s, 100 * s + 90)) for s in (1, 2)]
    prompts = [task + s + (q, 7) for s in subjects for q in range(1000, 1020)]
    assert list(plan_groups(prompts, PlanLimits(100, 100, 10, 64, 400))) == [
        (list(range(20)), 102),
        (list(range(20, 40)), 102),
    ]
