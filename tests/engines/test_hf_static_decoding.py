"""Decoding in steps of fixed shapes: the tokens of sessions without, on CUDA as graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.engines import GenerateRequest, TokenIds
from cme_bench.engines.hf import HFEngine, static_decoding
from cme_bench.engines.hf.static_decoding import Stepper
from cme_bench.engines.inbox import Batches
from tests.support.greedy import ends_often, generate_all


@pytest.fixture
def asked(make_ids: Callable[[int], TokenIds]) -> list[GenerateRequest]:
    """Rows after a header and rows on their own, of many lengths; more than half end early."""
    header = make_ids(20)
    shared = [GenerateRequest(header + make_ids(3 + i % 5), (2, 30, 5)[i % 3]) for i in range(20)]
    return shared + [GenerateRequest(make_ids(2 + i), (3, 25)[i % 2]) for i in range(12)]


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that rows of 64 tokens outgrow."""
    monkeypatch.setattr(static_decoding, "COLUMNS", 16)
    monkeypatch.setattr(static_decoding, "ROWS", 4)


def engine(model: Any, tokenizer: Any, **settings: Any) -> HFEngine:
    made = HFEngine(model, tokenizer, **settings)
    made.limits.forward_tokens = 8  # headers in these tests are short
    return made


@pytest.mark.parametrize("tokens_per_batch", [60, 400, 100_000])
def test_every_family_generates_what_it_does_without_fixed_shapes(
    family_model: Any,
    toy_tokenizer: PreTrainedTokenizerFast,
    asked: list[GenerateRequest],
    tokens_per_batch: int,
) -> None:
    model, _ = ends_often(family_model, asked[2])
    expected = generate_all(engine(model, toy_tokenizer, static=False), asked)
    static = engine(model, toy_tokenizer, static=True, tokens_per_batch=tokens_per_batch)
    assert generate_all(static, asked) == expected
    assert generate_all(static, asked[::-1]) == expected[::-1]


def test_memory_and_steps_serve_batch_after_batch(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, asked: list[GenerateRequest]
) -> None:
    static = engine(tiny_model, toy_tokenizer, static=True, tokens_per_batch=200)
    first = generate_all(static, asked)
    stepper = static._stepper
    assert stepper is not None
    steps, memory = set(stepper._steps), {key: m.data_ptr() for key, m in stepper._memory.items()}
    assert {shape.prefix for shape in steps} == {0, 20}
    assert len({shape.columns for shape in steps}) > 1
    with torch.inference_mode():
        for tensor in stepper._memory.values():
            tensor.fill_(float("nan"))  # whatever a batch leaves, the next one does not see
    assert generate_all(static, asked) == first
    assert set(stepper._steps) == steps
    assert {key: m.data_ptr() for key, m in stepper._memory.items()} == memory


def test_small_tasks_are_decoded_together_those_of_as_many_steps(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    make_ids: Callable[[int], TokenIds],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each with a header of its own, which is worth less than steps of its own; a long one is worth more."""
    long, headers = make_ids(40), [make_ids(6) for _ in range(4)]
    tasks = [
        [GenerateRequest(header + make_ids(3 + i), (2, 7)[number % 2]) for i in range(4)]
        for number, header in enumerate(headers)
    ] + [[GenerateRequest(long + make_ids(2), 3) for _ in range(4)]]
    every = [request for task in tasks for request in task]
    expected = generate_all(engine(tiny_model, toy_tokenizer, static=False), every)
    static = engine(tiny_model, toy_tokenizer, static=True, tokens_per_batch=160)
    batches: list[tuple[int, list[int]]] = []
    decode = static._decoder.decode_batch

    def counted(rows: Any, session: Any, positions: Any) -> Any:
        batches.append((rows[0].prefix, [row.n_new for row in rows]))
        return decode(rows, session, positions)

    monkeypatch.setattr(static._decoder, "decode_batch", counted)
    found = dict(static.serve(Batches(tasks)))
    assert [found[i] for i in range(len(found))] == expected
    assert batches == [(40, [3] * 4), (0, [7] * 8), (0, [2] * 8)]


def test_finished_rows_leave_once_an_eighth_is_at_work(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, make_ids: Callable[[int], TokenIds]
) -> None:
    header = make_ids(20)
    new = [2] * 16 + [6] * 12 + [12] * 4
    static = engine(tiny_model, toy_tokenizer, static=True)
    asked = [GenerateRequest(header + make_ids(3), n) for n in new]
    assert generate_all(static, asked) == generate_all(engine(tiny_model, toy_tokenizer, static=False), asked)
    assert static._stepper is not None
    assert {shape.rows for shape in static._stepper._steps} == {32, 4}, "16 of 32 stay, 4 leave"


def test_prompts_are_computed_without_padding(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, make_ids: Callable[[int], TokenIds]
) -> None:
    asked = [GenerateRequest(make_ids(n), 6) for n in (3, 33, 4, 30, 5, 9, 32)]
    static = engine(tiny_model, toy_tokenizer, static=True)
    assert generate_all(static, asked) == generate_all(engine(tiny_model, toy_tokenizer, static=False), asked)
    assert static.stats.tokens_padding == 0
    assert static.stats.tokens_computed == sum(len(r.prompt) for r in asked) + 7 * 5


def test_prompts_are_computed_in_parts() -> None:
    assert static_decoding.parts([5, 30, 9, 8, 28], 38) == [range(2), range(2, 4), range(4, 5)]
    assert static_decoding.parts([50, 30, 9], 38) == [range(1), range(1, 2), range(2, 3)]
    assert static_decoding.parts([7], 1) == [range(1)]


def test_counts_of_rows_are_few() -> None:
    counts = [static_decoding.Shape.of(rows, 1, 0).rows // 4 for rows in range(1, 97)]
    assert counts[:8] == [1, 1, 1, 1, 2, 2, 2, 2]
    assert sorted(set(counts)) == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    assert all(4 * count >= rows for rows, count in enumerate(counts, start=1))
    columns = {static_decoding.Shape.of(1, n, 0).columns for n in range(1, 129)}
    assert sorted(columns) == [16, 32, 48, 64, 96, 128]


def test_a_finished_row_takes_no_position_that_the_model_lacks(
    toy_tokenizer: PreTrainedTokenizerFast, make_ids: Callable[[int], TokenIds]
) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=1, n_head=2))
    asked = [GenerateRequest(make_ids(60), 2), GenerateRequest(make_ids(4), 60)]
    expected = generate_all(engine(model, toy_tokenizer, static=False), asked)
    static = engine(model, toy_tokenizer, static=True)
    assert generate_all(static, asked) == expected
    assert static._stepper is not None
    assert static._stepper._steps


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@needs_cuda
def test_cuda_replays_steps_as_graphs(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, asked: list[GenerateRequest]
) -> None:
    expected = generate_all(engine(tiny_model, toy_tokenizer, static=False, device="cpu"), asked)
    told: list[str] = []
    try:
        static = engine(tiny_model, toy_tokenizer, device="cuda", note=told.append)
        for _ in range(2):
            assert generate_all(static, asked) == expected
    finally:
        tiny_model.cpu()
    assert static._stepper is not None
    assert not told
    assert sum(step.graph is not None for step in static._stepper._steps.values()) > 2


@needs_cuda
def test_what_cuda_cannot_capture_is_computed_as_such(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    asked: list[GenerateRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = generate_all(engine(tiny_model, toy_tokenizer, static=False, device="cpu"), asked)
    compute = static_decoding.StaticSession._compute

    def asking(self: Any) -> Any:
        logits = compute(self)
        logits.sum().item()  # the host waits for the device, which no graph can
        return logits

    monkeypatch.setattr(static_decoding.StaticSession, "_compute", asking)
    told: list[str] = []
    try:
        static = engine(tiny_model, toy_tokenizer, device="cuda", note=told.append)
        assert generate_all(static, asked) == expected
    finally:
        tiny_model.cpu()
    assert [note[:28] for note in told] == ["decoding without CUDA graphs"]


def test_without_cuda_no_steps_of_fixed_shapes_are_asked_for(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert HFEngine(tiny_model, toy_tokenizer)._stepper is None
    assert isinstance(HFEngine(tiny_model, toy_tokenizer, static=True)._stepper, Stepper)
