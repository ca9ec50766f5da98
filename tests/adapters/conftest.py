"""A tiny random Llama, and random adapters on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from tests.support.adapter_cases import CONFIGS, TINY, Make, tiny_llama


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(7)
    yield


@pytest.fixture
def base() -> LlamaForCausalLM:
    """A fresh model with the same weights each time."""
    return tiny_llama()


@pytest.fixture
def ids() -> torch.Tensor:
    """(2, 6) token ids, no special ones."""
    return torch.randint(3, TINY.vocab_size, (2, 6), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def adapted(base: LlamaForCausalLM) -> Make:
    """Puts a random adapter of a method on the base: ``adapted("teamlora", num_experts=2, ...)``."""

    def make(method: str, **fields: object) -> PeftModel:
        settings = {"r": 3, "alpha": 6.0, "init": "random", "task_type": "CAUSAL_LM", **fields}
        return get_peft_model(base, CONFIGS[method](**settings))

    return make
