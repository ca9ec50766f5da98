"""A bfloat16 model on the real vLLM (CPU): every number that decides something has float32's precision."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import TeamLoraConfig
from cme_bench.cli.adapters import export_vllm
from cme_bench.engines import GenerateRequest
from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.vllm_bench import Bench
from tests.support.vllm_spy import CONTEXTS, EXACT, LENGTH, OTHER, TWIN, Spy, scored, twins

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


def adapter_on(model: Any, folder: Path) -> None:
    torch.manual_seed(1)
    get_peft_model(model, TeamLoraConfig(r=4, num_experts=3, init="random")).save_pretrained(folder)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Iterator[Bench]:
    """Started with room for the adapter beside it."""
    folder = tmp_path_factory.mktemp("precision")
    model = random_llama(0, hidden=64, heads=2, positions=LENGTH, vocab=384, tokenizer=toy_tokenizer)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    base = save_checkpoint(folder / "base", twins(model), toy_tokenizer)
    adapter_on(model, folder / "adapter")
    bench = Bench(base, toy_tokenizer, LENGTH, "bfloat16")
    yield bench
    bench.host.close()


@pytest.mark.parametrize("name", ["base", "adapter"])
def test_scores_and_texts_are_those_of_the_unrounded_product(tied: Bench, name: str) -> None:
    engine = tied.vllm(tied.base.parent / name if name == "adapter" else None)
    scored(engine, CONTEXTS[0], (3,))
    spy = Spy(tied.host._llm)
    for context in CONTEXTS:
        found = scored(engine, context, (TWIN,), (OTHER,), (5,))
        wanted = spy.logits().log_softmax(-1)[-1, [TWIN, OTHER, 5]]
        assert found == pytest.approx(wanted.tolist(), abs=EXACT)
        assert found[0] != found[1], "two tokens that differ by less than a step do not tie"

        tail = (TWIN, 9, OTHER, 8)
        [total] = scored(engine, context, tail)
        sampled, *inner = spy.logits().log_softmax(-1)
        wanted_total = sampled[tail[-1]] + sum(row[t] for row, t in zip(inner, tail, strict=False))
        assert total == pytest.approx(float(wanted_total), abs=4 * EXACT)

    [(_, text)] = engine.generate([GenerateRequest(CONTEXTS[3], 20)])
    assert tied.tokenizer.decode(spy.logits().argmax(-1), skip_special_tokens=True) == text.text
    assert engine.describe()["logits"] == "float32"


def test_ranks_share_an_output_layer_of_its_own(
    tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks, each with half of the vocabulary and its logits; the weight is not the embedding."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # three processes would each compile vLLM's sampler
    model = random_llama(0, hidden=64, kv_heads=2, positions=LENGTH, vocab=384, tokenizer=toy_tokenizer)
    base = save_checkpoint(tmp_path / "base", twins(model), toy_tokenizer)
    bench = Bench(base, toy_tokenizer, LENGTH, "bfloat16", tensor_parallel=2)
    try:
        engine = bench.vllm()
        for context in CONTEXTS:
            twin, other, _ = scored(engine, context, (TWIN,), (OTHER,), (9, OTHER, 9))
            assert 0 < abs(twin - other) < 0.2
        assert engine.describe()["logits"] == "float32"
    finally:
        bench.host.close()


def test_a_served_folder_is_exact_on_its_own(
    tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own loader and interface, told nothing but the folder; soft-capped logits."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=LENGTH,
        initializer_range=0.3,
        final_logit_softcapping=30.0,
        attn_logit_softcapping=None,  # not every CPU has the instructions of vLLM's kernel for it
        bos_token_id=270,
        eos_token_id=271,
        pad_token_id=272,
    )
    model = twins(Gemma2ForCausalLM(config))
    base = save_checkpoint(tmp_path / "base", model, toy_tokenizer)
    adapter_on(model, tmp_path / "adapter")
    export_vllm(tmp_path / "adapter", str(base), tmp_path / "served", offline=True)

    from vllm import LLM, SamplingParams

    asked = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=[TWIN, OTHER, 5])
    llm = LLM(str(tmp_path / "served"), dtype="bfloat16", max_model_len=LENGTH, enforce_eager=True)
    spy = Spy(llm)
    for context in CONTEXTS:
        [output] = llm.generate({"prompt_token_ids": list(context)}, asked, use_tqdm=False)
        [row] = spy.logits()
        found = output.outputs[0]
        logprobs = [found.logprobs[0][token].logprob for token in (TWIN, OTHER, 5)]
        assert logprobs == pytest.approx(row.log_softmax(-1)[[TWIN, OTHER, 5]].tolist(), abs=EXACT)
        assert logprobs[0] != logprobs[1]
        assert found.token_ids[0] == row.argmax()
