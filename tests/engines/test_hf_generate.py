"""Greedy decoding in batches against ``model.generate`` of one prompt at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.engines import GenerateRequest, TokenIds
from cme_bench.engines.hf import HFEngine, generate
from cme_bench.engines.stopping import cut_at_stop
from cme_bench.util.errors import CmeError
from tests.support.greedy import ends_often, generate_all, tokens_alone


@pytest.fixture
def prompts(make_ids: Callable[[int], TokenIds]) -> list[GenerateRequest]:
    shapes = [(1, 12), (30, 3), (17, 20), (5, 1), (40, 24), (17, 9), (2, 30), (25, 16)]
    return [GenerateRequest(make_ids(length), new) for length, new in shapes]


@pytest.mark.parametrize("tokens_per_batch", [1, 130, 100_000])
def test_every_family_equals_one_prompt_at_a_time(
    family_model: Any,
    toy_tokenizer: PreTrainedTokenizerFast,
    prompts: list[GenerateRequest],
    tokens_per_batch: int,
) -> None:
    model, end = ends_often(family_model, prompts[2])
    engine = HFEngine(model, toy_tokenizer, tokens_per_batch=tokens_per_batch)
    for request, found in zip(prompts, generate_all(engine, prompts), strict=True):
        expected = tokens_alone(model, request)
        assert found.n_tokens == len(expected)
        ended = expected[-1] in (end, 271)
        assert found.finish == ("eos" if ended else "length")
        text = toy_tokenizer.decode(expected[:-1] if ended else expected, skip_special_tokens=True)
        assert found.text == text


def test_further_ends_of_one_request_are_its_own(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, prompts: list[GenerateRequest]
) -> None:
    """As an adapter has that was trained to end its answers otherwise than its base."""
    engine = HFEngine(tiny_model, toy_tokenizer, tokens_per_batch=100_000)
    tokens = tokens_alone(tiny_model, prompts[2])
    end = next(i for i, token in enumerate(tokens) if i > 1 and token not in tokens[:i])
    asked = [*prompts[:2], replace(prompts[2], ends=(tokens[end],)), *prompts[2:]]
    plain, found = generate_all(engine, prompts), generate_all(engine, asked)
    assert [found[i] for i in range(len(asked)) if i != 2] == plain
    text = toy_tokenizer.decode(tokens[:end], skip_special_tokens=True)
    assert (found[2].text, found[2].n_tokens, found[2].finish) == (text, end + 1, "eos")


def test_finished_rows_leave_the_batch(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, prompts: list[GenerateRequest]
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer, tokens_per_batch=100_000)
    responses = generate_all(engine, prompts)
    fed = sum(len(p.prompt) + r.n_tokens - 1 for p, r in zip(prompts, responses, strict=True))
    assert engine.stats.tokens_computed == engine.stats.tokens_rowwise == fed
    assert engine.stats.tokens_padding == sum(40 - len(p.prompt) for p in prompts)
    assert engine.stats.tokens_generated == sum(r.n_tokens for r in responses)


def test_rows_stay_when_the_cache_cannot_drop_them(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    prompts: list[GenerateRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = generate_all(HFEngine(tiny_model, toy_tokenizer), prompts)
    monkeypatch.setattr(generate, "_can_select", lambda cache: False)
    engine = HFEngine(tiny_model, toy_tokenizer)
    assert generate_all(engine, prompts) == expected
    assert engine.stats.tokens_computed == engine.stats.tokens_rowwise
    assert engine.stats.tokens_padding > sum(40 - len(p.prompt) for p in prompts)


def test_text_ends_before_the_first_stop_string(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, prompts: list[GenerateRequest]
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer)
    plain = prompts[6]
    whole = generate_all(engine, [plain])[0]
    late, early = whole.text[9:12], whole.text[5:7]
    stops = ("", "not in the text", late, early)
    request = GenerateRequest(plain.prompt, plain.max_new_tokens, stops)
    unstopped, found = generate_all(engine, [plain, request])
    assert unstopped == whole
    assert found.finish == "stop"
    assert found.text == whole.text[: min(whole.text.find(late), whole.text.find(early))]
    assert found.n_tokens < whole.n_tokens


def test_a_stop_string_longer_than_any_token_is_found_in_the_tail(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, prompts: list[GenerateRequest]
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer)
    whole = generate_all(engine, [prompts[6]])[0].text
    request = GenerateRequest(prompts[6].prompt, 30, (whole[2:15],))
    assert generate_all(engine, [request])[0].text == whole[:2]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two", ("two", "one"), ""),
        ("one two", (" two",), "one"),
        ("one two", ("three", ""), None),
        ("", ("x",), None),
    ],
)
def test_cut_at_stop(text: str, stop: tuple[str, ...], expected: str | None) -> None:
    assert cut_at_stop(text, stop) == expected


def test_the_tokenizers_end_token_stops_a_model_that_names_none(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = copy.deepcopy(tiny_model)
    for named, ends in ((None, {271}), (5, {5, 271}), ([5, 6], {5, 6, 271})):
        model.generation_config.eos_token_id = named
        assert HFEngine(model, toy_tokenizer)._decoder._end_ids == ends


def test_requests_past_the_limit_are_named(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, make_ids: Callable[[int], TokenIds]
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer)
    at_limit = GenerateRequest(make_ids(60), 5)
    assert generate_all(engine, [at_limit])[0].n_tokens <= 5
    with pytest.raises(ValueError, match=r"request 1: 60 \+ 6 new tokens exceed max_length 65"):
        engine.generate([at_limit, GenerateRequest(make_ids(60), 6)])
    with pytest.raises(ValueError, match="request 0: the prompt is empty"):
        engine.generate([GenerateRequest((), 5)])
    with pytest.raises(ValueError, match="request 0: max_new_tokens must be positive"):
        engine.generate([GenerateRequest((1,), 0)])


def test_nan_logits_name_the_request(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, make_ids: Callable[[int], TokenIds]
) -> None:
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.get_input_embeddings().weight[299] = float("nan")
    requests = [GenerateRequest(make_ids(5), 3), GenerateRequest((1, 299), 3)]
    with pytest.raises(CmeError, match="request 1 after 0 new tokens: the model's logits are NaN"):
        generate_all(HFEngine(model, toy_tokenizer), requests)


def test_the_device_is_at_work_while_it_generates(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer)
    generate_all(engine, [GenerateRequest((5, 6, 7), 8)])
    assert 0 < engine.stats.extra["device_seconds"] <= engine.stats.model_seconds
