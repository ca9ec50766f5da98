"""Fixtures of whoever runs tests: a tiny random model and a toy tokenizer, both made here, offline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.workshop import Workshop

THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> None:
    """One thread for tiny models: they gain nothing by more, and lose much on a busy machine."""
    torch.set_num_threads(THREADS if request.node.get_closest_marker("slow") else 1)


@pytest.fixture(scope="session")
def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: 256 ids for bytes, six merges, unused ids, then <s> 270, </s> 271, <pad> 272."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "a"), ("i", "n"), ("Ġ", "the"), ("e", "r")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    while len(vocab) < 270:
        vocab[f"<unused{len(vocab)}>"] = len(vocab)
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template="{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}",
    )


@pytest.fixture(scope="session")
def tiny_model(toy_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Two random layers, float32, 64 positions; its weights must not be changed by a test."""
    return random_llama(0, hidden=64, heads=4, kv_heads=2, tokenizer=toy_tokenizer)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model folder: two random layers with room for 8,192 tokens, and the toy tokenizer."""
    model = random_llama(1, positions=8192, tokenizer=toy_tokenizer)
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny", model, toy_tokenizer)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """A task with four rows to score and six exemplars."""
    shop = Workshop(tmp_path)
    shop.write_yaml()
    shop.write_rows("test", [{"question": f"test {i}?", "label": i % 2} for i in range(4)])
    shop.write_rows("train", [{"question": f"shot {i}?", "label": i % 2} for i in range(6)])
    return shop
