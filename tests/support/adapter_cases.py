"""The methods and the tiny base model that the adapter tests share."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from cme_bench.adapters import AdapterConfig
from cme_bench.adapters.registry import methods, routed_names

CONFIGS: dict[str, type[AdapterConfig]] = {
    method.name: method.config_class for method in methods() if issubclass(method.config_class, AdapterConfig)
}
ROUTED = routed_names()
ON_LINEARS = [name for name in CONFIGS if name != "mixlora"]
"""Methods that adapt any linear layer; MixLoRA needs a feed-forward block that it knows."""
TINY = LlamaConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    initializer_range=0.3,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)
Make = Callable[..., PeftModel]


def tiny_llama() -> LlamaForCausalLM:
    """A fresh model in evaluation mode, with the same weights each time and a config of its own."""
    torch.manual_seed(1)
    return LlamaForCausalLM(copy.deepcopy(TINY)).eval()
