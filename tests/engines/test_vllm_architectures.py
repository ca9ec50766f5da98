"""A TeamLoRA on each architecture with default targets, on the real vLLM (CPU), against transformers."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPTNeoXConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from cme_bench.adapters import TeamLoraConfig
from cme_bench.engines import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.hf.engine import HFEngine
from cme_bench.errors import CmeError
from cme_bench.vllm_plugin.file import write_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

LENGTH = 96
SHAPE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.08,
    "bos_token_id": 270,
    "eos_token_id": 271,
    "pad_token_id": 272,
}
ARCHITECTURES: dict[str, PretrainedConfig] = {
    "phi3": Phi3Config(**SHAPE, num_key_value_heads=1),
    "gpt_neox": GPTNeoXConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE, num_key_value_heads=1),
    "qwen3": Qwen3Config(**SHAPE, num_key_value_heads=1, head_dim=64),
    "gemma": GemmaConfig(**SHAPE, num_key_value_heads=1, head_dim=64),
}


@dataclass
class Case:
    """A base model and an adapter on it, in folders, and vLLM with that adapter."""

    base: Path
    adapter: Path
    host: Any
    vllm: Any


@contextmanager
def running(name: str, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Iterator[Case]:
    from cme_bench.engines.vllm.adapter import read_gated
    from cme_bench.engines.vllm.engine import VLLMEngine
    from cme_bench.engines.vllm.host import Host
    from cme_bench.engines.vllm.settings import VllmSettings

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(ARCHITECTURES[name])
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    config = TeamLoraConfig(r=4, num_experts=3, init="random", target_attention=True, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder / "adapter")
    gated = read_gated(folder / "adapter", ARCHITECTURES[name])
    file = folder / "gated.safetensors"
    write_adapter(file, gated.spec, gated.tensors)
    host = Host(folder / "base", "float32", VllmSettings(kv_gib=1, block_size=32))
    host.allow(LENGTH)
    ends = frozenset([tokenizer.eos_token_id])
    try:
        yield Case(
            folder / "base",
            folder / "adapter",
            host,
            VLLMEngine(host, tokenizer, ends, adapter=file, spec=gated.spec),
        )
    finally:
        host.close()


def questions() -> list[LoglikelihoodRequest]:
    source = random.Random(1)
    contexts = [tuple(source.randrange(3, 260) for _ in range(n)) for n in (1, 31, 40, 64)]
    return [LoglikelihoodRequest(((c, (5,)), (c, (6, 7, 8)), (c, (6,)))) for c in contexts]


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"gpt_neox"}))
def test_an_architecture_equals_transformers(
    name: str, tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = questions()
    prompts = [GenerateRequest(request.rows[0][0], 12) for request in asked]
    with running(name, tmp_path, toy_tokenizer) as case:
        model: Any = AutoModelForCausalLM.from_pretrained(case.base)
        without = dict(HFEngine(model, toy_tokenizer, plain=True).loglikelihood(asked))
        model = PeftModel.from_pretrained(model, case.adapter)
        transformers = HFEngine(model, toy_tokenizer, plain=True)
        found, wanted = dict(case.vllm.loglikelihood(asked)), dict(transformers.loglikelihood(asked))
        assert dict(case.vllm.generate(prompts)) == dict(transformers.generate(prompts))
    for index, response in wanted.items():
        assert found[index].logprobs == pytest.approx(response.logprobs, abs=1e-4)
        assert found[index].greedy == response.greedy
    assert any(abs(r.logprobs[0] - without[i].logprobs[0]) > 0.01 for i, r in wanted.items())


def test_interleaved_heads_are_refused(tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    """GPT-NeoX: vLLM either reorders the fused attention's rows, or has no class of its own for the model."""
    with (
        running("gpt_neox", tmp_path, toy_tokenizer) as case,
        pytest.raises(CmeError, match=r"reorder the rows|no model class of its own"),
    ):
        dict(case.vllm.loglikelihood(questions()))
