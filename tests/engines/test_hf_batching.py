"""Batches under a token budget, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.engines import GenerateRequest, LoglikelihoodRequest, TokenIds
from cme_bench.engines.hf import HFEngine, batching
from cme_bench.engines.hf.loglikelihood import ScoringRow, plan_rows
from cme_bench.util.errors import CmeError


def row(n_input: int) -> ScoringRow:
    return ScoringRow((0,) * n_input, (0,))


def test_batches_fill_the_budget_and_hold_at_least_one_row() -> None:
    rows = [row(n) for n in (50, 10, 10, 9, 8)]
    taken = []
    start = 0
    while start < len(rows):
        batch = batching.take_batch(rows, start, 30)
        taken.append([r.n_input for r in batch])
        start += len(batch)
    assert taken == [[50], [10, 10, 9], [8]]


def test_rows_of_a_request_are_adjacent_and_the_longest_request_leads() -> None:
    short = LoglikelihoodRequest((((1,), (2,)), ((1,), (3, 4, 5))))
    long = LoglikelihoodRequest((((1, 2), (9,)), ((1, 2, 3, 4, 5), (9,))))
    owners = [r.owners for r in plan_rows([short, long])]
    assert owners == [[(1, 1)], [(1, 0)], [(0, 1)], [(0, 0)]]


def test_the_default_budget_on_cpu(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert HFEngine(tiny_model, toy_tokenizer).budget.tokens == batching.CPU_TOKENS_PER_BATCH
    with pytest.raises(ValueError, match="at least one token"):
        HFEngine(tiny_model, toy_tokenizer, tokens_per_batch=0)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
)
def test_a_batch_too_large_is_halved_and_the_smaller_budget_stays(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    make_ids: Callable[[int], TokenIds],
    monkeypatch: pytest.MonkeyPatch,
    error: RuntimeError,
) -> None:
    scoring = [LoglikelihoodRequest(((make_ids(10), make_ids(3)),)) for _ in range(16)]
    generating = [GenerateRequest(make_ids(10), 5) for _ in range(16)]
    plain = HFEngine(tiny_model, toy_tokenizer, tokens_per_batch=12, plain=True)
    scores, texts = dict(plain.loglikelihood(scoring)), dict(plain.generate(generating))

    engine = HFEngine(tiny_model, toy_tokenizer, plain=True)
    sizes: list[int] = []
    forward = tiny_model.forward

    def small_memory(*args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 5:
            raise error
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny_model, "forward", small_memory)
    found = dict(engine.loglikelihood(scoring))
    assert sizes == [1, 1, 1, 1, 1, 3, 16, 8, 4, 4, 4, 4], "positions and padding are tried first"
    assert engine.budget.tokens == 4 * 12
    for index, response in scores.items():
        assert found[index].logprobs == pytest.approx(response.logprobs, abs=1e-4)
    sizes.clear()
    assert dict(engine.generate(generating)) == texts
    assert max(sizes) <= 4


def test_one_row_too_large_says_its_length_and_what_to_do(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    make_ids: Callable[[int], TokenIds],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("can't allocate memory")

    engine = HFEngine(tiny_model, toy_tokenizer, plain=True)
    monkeypatch.setattr(tiny_model, "forward", no_memory)
    with pytest.raises(CmeError, match="single row of 22 tokens: use fewer shots"):
        list(engine.loglikelihood([LoglikelihoodRequest(((make_ids(20), make_ids(3)),))] * 3))


def test_other_errors_pass_through(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    make_ids: Callable[[int], TokenIds],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("shapes do not match")

    engine = HFEngine(tiny_model, toy_tokenizer, plain=True)
    monkeypatch.setattr(tiny_model, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(engine.loglikelihood([LoglikelihoodRequest(((make_ids(5), make_ids(2)),))]))


def test_a_consumer_that_stops_reading_stops_the_work(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, make_ids: Callable[[int], TokenIds]
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer, tokens_per_batch=12)
    requests = [LoglikelihoodRequest(((make_ids(10), make_ids(3)),)) for _ in range(8)]
    next(engine.loglikelihood(requests))
    assert engine.stats.tokens_computed == 12
