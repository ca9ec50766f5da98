"""Scores over shared prefixes against the plain engine."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from cme_bench.adapters import TeamLoraConfig
from cme_bench.engines import LoglikelihoodRequest, LoglikelihoodResponse, TokenIds
from cme_bench.engines.hf import HFEngine, pack_forward, unit_attention
from cme_bench.engines.plan import PlanLimits
from cme_bench.util.errors import CmeError
from tests.support.tiny_llama import random_llama
from tests.support.tries import limits, requests

SMALL = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


divided = st.sampled_from([0, 1 << 30])
"""What a batch of units more costs, or seems to: nothing, so that there are many, or much."""


def score_all(engine: HFEngine, asked: list[LoglikelihoodRequest]) -> list[LoglikelihoodResponse]:
    found = dict(engine.loglikelihood(asked))
    assert sorted(found) == list(range(len(asked)))
    return [found[i] for i in range(len(asked))]


def assert_equal_to_plain(
    model: Any, tokenizer: Any, asked: list[LoglikelihoodRequest], plan: PlanLimits | None = None
) -> HFEngine:
    engine = HFEngine(model, tokenizer)
    assert engine.rowwise_because is None
    if plan is not None:
        engine.limits = dataclasses.replace(plan)
    expected = score_all(HFEngine(model, tokenizer, plain=True), asked)
    for one, other in zip(score_all(engine, asked), expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    return engine


@SMALL
@given(asked=requests(), plan=limits, launch=divided)
def test_any_trie_on_every_family(
    family_model: Any,
    toy_tokenizer: PreTrainedTokenizerFast,
    asked: list[LoglikelihoodRequest],
    plan: PlanLimits,
    launch: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit_attention, "_LAUNCH", {"cpu": launch + 1})
        assert_equal_to_plain(family_model, toy_tokenizer, asked, plan)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@SMALL
@given(asked=requests(), plan=limits, launch=divided)
def test_any_trie_on_cuda(
    family_model: Any,
    toy_tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    asked: list[LoglikelihoodRequest],
    plan: PlanLimits,
    launch: int,
) -> None:
    model = copy.deepcopy(family_model).to("cuda", dtype)
    engine = HFEngine(model, toy_tokenizer)
    assert engine.rowwise_because is None
    engine.limits = dataclasses.replace(plan)
    expected = score_all(HFEngine(family_model, toy_tokenizer, plain=True), asked)
    close = {"abs": 1e-3} if dtype == torch.float32 else {"rel": 0.1, "abs": 1.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit_attention, "_LAUNCH", {"cuda": launch + 1})
        found = score_all(engine, asked)
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, **close)


@pytest.fixture
def questions(make_ids: Callable[[int], TokenIds]) -> list[LoglikelihoodRequest]:
    """A header, 20 questions, choices of several lengths."""
    header = make_ids(25)
    asked = []
    for _ in range(20):
        context = header + make_ids(10)
        asked.append(LoglikelihoodRequest(tuple((context, make_ids(n)) for n in (1, 1, 4, 9))))
    return asked


def test_a_header_is_computed_once(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    questions: list[LoglikelihoodRequest],
) -> None:
    engine = assert_equal_to_plain(tiny_model, toy_tokenizer, questions)
    assert engine.stats.tokens_computed <= 25 + 20 * (10 + 3 + 8)
    assert engine.stats.tokens_rowwise == 20 * (35 + 35 + 38 + 43)
    assert engine.stats.tokens_padding == 0


def test_a_header_and_what_follows_it_take_one_forward(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    questions: list[LoglikelihoodRequest],
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer)
    assert engine.rowwise_because is None
    fed: list[int] = []
    hook = tiny_model.model.layers[0].register_forward_pre_hook(
        lambda _, given: fed.append(given[0].shape[1])
    )
    score_all(engine, questions)
    hook.remove()
    assert fed == [engine.stats.tokens_computed]


def test_a_forward_of_several_packs_that_fails_is_computed_in_parts(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    make_ids: Callable[[int], TokenIds],
) -> None:
    """Memory runs out in the last layer; those before it keep the next header and no longer this one."""
    engine = HFEngine(tiny_model, toy_tokenizer)
    assert engine.rowwise_because is None
    engine.limits = PlanLimits(100, 1000, 20, 1, 64)
    top = make_ids(15)
    headers = [top + make_ids(15) for _ in range(2)]
    asked = [
        LoglikelihoodRequest(((header + make_ids(9), make_ids(1)),)) for header in headers for _ in range(15)
    ]
    expected = score_all(HFEngine(tiny_model, toy_tokenizer, plain=True), asked)
    run, failing, failed = pack_forward.PackForward.__call__, [False], list[bool]()

    def noted(self: Any, pack: Any) -> Any:
        kept = [part.keep for part in pack.packs]
        failing[0] = kept[0] is False and True in kept
        return run(self, pack)

    def small_memory(*_: Any) -> None:
        if failing[0]:
            failed.append(True)
            raise RuntimeError("can't allocate memory")

    hook = tiny_model.model.layers[-1].register_forward_pre_hook(small_memory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_forward.PackForward, "__call__", noted)
        found = score_all(engine, asked)
    hook.remove()
    assert len(failed) == 1
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("method", ["lora", "teamlora"])
def test_adapters(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    questions: list[LoglikelihoodRequest],
    method: str,
) -> None:
    torch.manual_seed(2)
    config = (
        peft.LoraConfig(r=4, target_modules=["up_proj"], init_lora_weights=False)
        if method == "lora"
        else TeamLoraConfig(r=4, alpha=8.0, init="random", num_experts=2, task_type="CAUSAL_LM")
    )
    model = peft.get_peft_model(copy.deepcopy(tiny_model), config).eval()
    plain = score_all(HFEngine(tiny_model, toy_tokenizer), questions)
    assert_equal_to_plain(model, toy_tokenizer, questions)
    changed = score_all(HFEngine(model, toy_tokenizer), questions)
    assert changed[0].logprobs != pytest.approx(plain[0].logprobs, abs=1e-3)


def test_gemma_2_caps_its_scores(
    toy_tokenizer: PreTrainedTokenizerFast, questions: list[LoglikelihoodRequest]
) -> None:
    torch.manual_seed(3)
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        initializer_range=0.3,
        sliding_window=16,
        attn_logit_softcapping=2.0,
        attn_implementation="eager",
    )
    assert_equal_to_plain(Gemma2ForCausalLM(config).eval(), toy_tokenizer, questions)


def test_bfloat16_stays_close(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    questions: list[LoglikelihoodRequest],
) -> None:
    engine = HFEngine(copy.deepcopy(tiny_model).bfloat16(), toy_tokenizer)
    assert engine.rowwise_because is None
    exact = score_all(HFEngine(tiny_model, toy_tokenizer), questions)
    for one, other in zip(score_all(engine, questions), exact, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, rel=0.1, abs=0.5)


def test_the_models_own_attention_is_put_back(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    questions: list[LoglikelihoodRequest],
) -> None:
    next(HFEngine(tiny_model, toy_tokenizer).loglikelihood(questions))
    assert tiny_model.config._attn_implementation == "sdpa"


def test_order_changes_nothing(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    questions: list[LoglikelihoodRequest],
) -> None:
    order = random.Random(5).sample(range(len(questions)), len(questions))
    straight = score_all(HFEngine(tiny_model, toy_tokenizer), questions)
    shuffled = score_all(HFEngine(tiny_model, toy_tokenizer), [questions[i] for i in order])
    assert [straight[i] for i in order] == shuffled


def test_questions_finish_as_they_are_computed(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    questions: list[LoglikelihoodRequest],
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer, tokens_per_batch=64)
    seen = [engine.stats.tokens_computed for _ in engine.loglikelihood(questions)]
    assert seen[0] <= 25 + 64
    assert len(set(seen)) > 5


# ---- what falls back to rows


def test_a_recurrent_model_runs_row_by_row(
    toy_tokenizer: PreTrainedTokenizerFast, questions: list[LoglikelihoodRequest]
) -> None:
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2)).eval()
    engine = HFEngine(model, toy_tokenizer, max_length=64)
    assert engine.rowwise_because is not None
    assert len(score_all(engine, questions)) == len(questions)


def test_an_adapter_that_pools_runs_row_by_row(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = copy.deepcopy(tiny_model)
    model.model.layers[0].mlp.pools_over_sequence = True
    assert HFEngine(model, toy_tokenizer).rowwise_because == "an adapter pools over the sequence"


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_positions_that_depend_on_the_length_run_row_by_row(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    model = copy.deepcopy(tiny_model)
    model.config.rope_parameters = {"rope_type": kind, "rope_theta": 10000.0}
    assert "depend on the row's length" in str(HFEngine(model, toy_tokenizer).rowwise_because)


def test_chunked_attention_runs_row_by_row(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = copy.deepcopy(tiny_model)
    model.config.layer_types = ["chunked_attention", "full_attention"]
    assert "chunked_attention" in str(HFEngine(model, toy_tokenizer).rowwise_because)


def test_a_model_whose_tokens_see_what_comes_after_runs_row_by_row(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(tiny_model)
    inner = model.model.layers[1].mlp.forward
    monkeypatch.setattr(model.model.layers[1].mlp, "forward", lambda x: inner(x + x.mean(1, keepdim=True)))
    assert HFEngine(model, toy_tokenizer).rowwise_because == "a trial gave other scores"


# ---- memory


def test_a_long_header_and_many_questions_stay_within_the_budget(
    toy_tokenizer: PreTrainedTokenizerFast,
    make_ids: Callable[[int], TokenIds],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2,000 tokens x 1,000 questions: at no time are more keys kept than the header's, nor packs larger
    than asked for, nor attention masks larger than a pack needs."""
    from cme_bench.engines.hf import tree_attention

    kept, packs, masks = [], [], []
    run = pack_forward.PackForward.__call__
    additive = tree_attention.additive

    def watched(self: Any, pack: Any) -> Any:
        pending = run(self, pack)
        kept.append(sum(t.nbytes for pair in self.kept._kept.values() for t in pair))
        packs.append(pack.n_tokens)
        return pending

    def counted(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        masks.append(seen.numel())
        return additive(seen, dtype)

    monkeypatch.setattr(pack_forward.PackForward, "__call__", watched)
    for module in (tree_attention, unit_attention):
        monkeypatch.setattr(module, "additive", counted)
    header = make_ids(2000)
    asked = []
    for _ in range(1000):
        context = header + make_ids(6)
        asked.append(LoglikelihoodRequest(tuple((context, make_ids(n)) for n in (1, 3))))
    engine = HFEngine(random_llama(1, positions=4096), toy_tokenizer, tokens_per_batch=512)
    score_all(engine, asked)
    bytes_per_token = 2 * 2 * 16 * 4  # keys and values, 2 layers, 1 head of 16, float32
    assert max(kept) == 2000 * bytes_per_token
    assert max(packs) <= 512
    assert max(masks) <= 512 * 512
    assert engine.stats.tokens_computed <= 2000 + 1000 * (6 + 2)


def test_a_pack_too_large_is_split_and_the_smaller_size_stays(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    questions: list[LoglikelihoodRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = score_all(HFEngine(tiny_model, toy_tokenizer), questions)
    forward = tiny_model.forward
    sizes = []

    def small_memory(*args: Any, **kwargs: Any) -> Any:
        sizes.append(kwargs["input_ids"].shape[1])
        if sizes[-1] > 100:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(*args, **kwargs)

    engine = HFEngine(tiny_model, toy_tokenizer)
    monkeypatch.setattr(tiny_model, "forward", small_memory)
    for one, other in zip(score_all(engine, questions), expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert engine.limits.pack_tokens <= 110
    assert sum(size > 100 for size in sizes) <= 4


def test_a_block_too_large_says_its_length_and_what_to_do(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer)
    assert engine.rowwise_because is None

    def no_memory(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(tiny_model, "forward", no_memory)
    with pytest.raises(CmeError, match="out of memory on 20 tokens after a shared prefix of 0: use fewer"):
        score_all(engine, [LoglikelihoodRequest(((tuple(range(20)), (1,)),))])
