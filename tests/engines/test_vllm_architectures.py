"""A TeamLoRA on each architecture with default targets, on the real vLLM (CPU), against transformers."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
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
from cme_bench.util.errors import CmeError
from tests.support.tiny_llama import save_checkpoint
from tests.support.vllm_bench import Bench

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


@contextmanager
def running(name: str, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Bench, Path]]:
    """The base model in vLLM, and the folder of an adapter on it."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(ARCHITECTURES[name])
    save_checkpoint(folder / "base", model, tokenizer)
    config = TeamLoraConfig(r=4, num_experts=3, init="random", target_attention=True, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder / "adapter")
    bench = Bench(folder / "base", tokenizer, LENGTH)
    try:
        yield bench, folder / "adapter"
    finally:
        bench.host.close()


def questions() -> list[LoglikelihoodRequest]:
    source = random.Random(1)
    contexts = [tuple(source.randrange(3, 260) for _ in range(n)) for n in (1, 31, 40, 64)]
    return [LoglikelihoodRequest(((c, (5,)), (c, (6, 7, 8)), (c, (6,)))) for c in contexts]


def refuses_neox(bench: Bench, adapter: Path) -> bool:
    """Whether this vLLM has a class of its own for GPT-NeoX, which reorders the fused attention's rows."""
    from vllm import ModelRegistry

    engine = bench.vllm(adapter)
    architecture = "GPTNeoXForCausalLM"
    if ModelRegistry.models[architecture].module_name.endswith("transformers"):
        return False
    with pytest.raises(CmeError, match="reorder the rows"):
        bench.host.use(None, engine._spec)
    return True


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_equals_transformers(
    name: str, tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = questions()
    prompts = [GenerateRequest(request.rows[0][0], 12) for request in asked]
    with running(name, tmp_path, toy_tokenizer) as (bench, adapter):
        if name == "gpt_neox" and refuses_neox(bench, adapter):
            return
        vllm, transformers = bench.vllm(adapter), bench.transformers(adapter)
        # Before vLLM: where it runs transformers' class, it changes that in this process.
        without = dict(bench.transformers().loglikelihood(asked))
        wanted, texts = dict(transformers.loglikelihood(asked)), dict(transformers.generate(prompts))
        found = dict(vllm.loglikelihood(asked))
        assert dict(vllm.generate(prompts)) == texts
    for index, response in wanted.items():
        assert found[index].logprobs == pytest.approx(response.logprobs, abs=1e-4)
        assert found[index].greedy == response.greedy
    assert any(abs(r.logprobs[0] - without[i].logprobs[0]) > 0.01 for i, r in wanted.items())
