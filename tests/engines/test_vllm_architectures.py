"""A TeamLoRA on each architecture with default targets, on the real vLLM (CPU), against transformers."""

from __future__ import annotations

import importlib.util
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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_equals_transformers(
    name: str, tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    from cme_bench.engines.vllm.adapter import read_gated
    from cme_bench.engines.vllm.engine import VLLMEngine
    from cme_bench.engines.vllm.host import Host
    from cme_bench.engines.vllm.settings import VllmSettings

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(ARCHITECTURES[name])
    base, folder = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    toy_tokenizer.save_pretrained(base)
    config = TeamLoraConfig(r=4, num_experts=3, init="random", target_attention=True, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder)

    generator = torch.Generator().manual_seed(1)
    ids = [tuple(torch.randint(3, 260, (n,), generator=generator).tolist()) for n in (1, 31, 40, 64)]
    asked = [LoglikelihoodRequest(((c, (5,)), (c, (6, 7, 8)), (c, (6,)))) for c in ids]
    prompts = [GenerateRequest(c, 12) for c in ids]

    base_model: Any = AutoModelForCausalLM.from_pretrained(base)
    plain = HFEngine(base_model, toy_tokenizer, plain=True)
    without = dict(plain.loglikelihood(asked))
    adapted: Any = PeftModel.from_pretrained(base_model, folder)
    theirs = HFEngine(adapted, toy_tokenizer, plain=True)
    wanted, written = dict(theirs.loglikelihood(asked)), dict(theirs.generate(prompts))

    host = Host(base, "float32", VllmSettings(kv_gib=1, block_size=32))
    host.allow(LENGTH)
    gated = read_gated(folder, base_model.config)
    write_adapter(tmp_path / "gated.safetensors", gated.spec, gated.tensors)
    try:
        ours = VLLMEngine(
            host,
            toy_tokenizer,
            frozenset([271]),
            adapter=tmp_path / "gated.safetensors",
            spec=gated.spec,
        )
        found = dict(ours.loglikelihood(asked))
        assert dict(ours.generate(prompts)) == written
    finally:
        host.close()
    for index, response in wanted.items():
        assert found[index].logprobs == pytest.approx(response.logprobs, abs=1e-4)
        assert found[index].greedy == response.greedy
    assert any(abs(r.logprobs[0] - without[i].logprobs[0]) > 0.01 for i, r in wanted.items())
