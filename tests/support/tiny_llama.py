"""Random Llamas small enough for any test, made here, offline; the same seed gives the same weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCAB_SIZE = 300


def random_llama(
    seed: int,
    *,
    hidden: int = 32,
    heads: int = 2,
    kv_heads: int = 1,
    positions: int = 64,
    vocab: int = VOCAB_SIZE,
    spread: float = 0.3,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> LlamaForCausalLM:
    """Two layers in float32, in evaluation mode; ``spread`` is the standard deviation of the weights, and the
    special tokens are those of ``tokenizer``."""
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        initializer_range=spread,
        **({name: getattr(tokenizer, name) for name in special} if tokenizer else {}),
    )
    return LlamaForCausalLM(config).eval()


def save_checkpoint(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """``folder``, a model folder as ``cme-bench run`` takes it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
