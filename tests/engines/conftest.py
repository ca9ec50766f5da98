"""Tiny models of several families, and the slow obvious way to score."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cme_bench.engines import LoglikelihoodRequest, LoglikelihoodResponse, TokenIds

MakeIds: TypeAlias = Callable[[int], TokenIds]
Reference: TypeAlias = Callable[[Any, LoglikelihoodRequest], LoglikelihoodResponse]

_SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 270,
    "eos_token_id": 271,
    "pad_token_id": 272,
}


@pytest.fixture(scope="session", params=["llama", "qwen3", "gemma3", "gpt_neox", "phi3"])
def family_model(request: pytest.FixtureRequest, tiny_model: LlamaForCausalLM) -> Any:
    """One model of each family; Gemma 3 has a window of 8 tokens in its first layer, and soft-caps."""
    torch.manual_seed(1)
    match request.param:
        case "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(**_SIZES, num_key_value_heads=2, head_dim=16)).eval()
        case "gemma3":
            config = Gemma3TextConfig(
                **_SIZES,
                num_key_value_heads=2,
                head_dim=16,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
                final_logit_softcapping=5.0,
            )
            return Gemma3ForCausalLM(config).eval()
        case "gpt_neox":
            return GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES)).eval()
        case "phi3":
            return Phi3ForCausalLM(Phi3Config(**_SIZES, num_key_value_heads=2)).eval()
        case _:
            return tiny_model


@pytest.fixture
def make_ids() -> MakeIds:
    """Random token ids of a given length, the same in every run."""
    source = random.Random(7)
    return lambda length: tuple(source.randrange(256) for _ in range(length))


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Scores each row alone from the whole [tokens, vocab] log-softmax."""

    @torch.no_grad()
    def score(model: Any, request: LoglikelihoodRequest) -> LoglikelihoodResponse:
        logprobs, greedy = [], []
        for context, continuation in request.rows:
            table = model(torch.tensor([context + continuation])).logits[0].float().log_softmax(-1)
            places = range(len(context) - 1, len(context) + len(continuation) - 1)
            pairs = list(zip(places, continuation, strict=True))
            logprobs.append(sum(float(table[place, token]) for place, token in pairs))
            greedy.append(all(int(table[place].argmax()) == token for place, token in pairs))
        return LoglikelihoodResponse(tuple(logprobs), tuple(greedy))

    return score
