"""A Qwen3 whose next token follows from its last alone, by a table: what it says is known beforehand.

Its layers add nothing, its embeddings are one-hot, and its output layer is the table. So the distribution
after a token is the table's own, to within float32, on every engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tests.support.tiny_llama import save_checkpoint

WIDTH = 384
END = "<|im_end|>"
_SPECIAL = ("<|im_start|>", END)
THINKING = {
    "start": "<think>",
    "<think>": "one",
    "one": "two",
    "two": "three",
    "three": "</think>",
    "</think>": "\n\n",
    "\n\n": "yes",
    "yes": "stop",
}
"""Part of a table: after ``start`` a thought of five tokens with its marks, and the answer yes."""


def scripted_tokenizer(words: tuple[str, ...], template: str | None) -> PreTrainedTokenizerFast:
    """Byte-level, with one token for each of ``words``; those for turns are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in _SPECIAL])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, chat_template=template
    )


def scripted_model(
    table: Mapping[str, str | Mapping[str, float]], tokenizer: PreTrainedTokenizerFast, positions: int = 512
) -> Qwen3ForCausalLM:
    """After a token it says what ``table`` has for it: a token, or tokens by their probabilities. After any
    other it ends."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=WIDTH,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).eval()
    logits = torch.full((WIDTH, WIDTH), -30.0)
    logits[tokenizer.eos_token_id] = 5.0
    for word, following in table.items():
        column = _id(tokenizer, word)
        logits[:, column] = -30.0
        for after, share in ({following: 1.0} if isinstance(following, str) else following).items():
            logits[_id(tokenizer, after), column] = math.log(share)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(WIDTH))
        model.lm_head.weight.copy_(logits / math.sqrt(WIDTH))  # a one-hot row has this norm, times sqrt
    return model


def save_scripted(
    folder: Path,
    table: Mapping[str, str | Mapping[str, float]],
    template: str | None,
    *,
    positions: int = 512,
) -> Path:
    """A model folder of that model; every text of the table that has several bytes is a token."""
    said = {word for value in table.values() for word in ([value] if isinstance(value, str) else value)}
    words = tuple(sorted(w for w in {*table, *said} if len(w.encode()) > 1 and w not in _SPECIAL))
    tokenizer = scripted_tokenizer(words, template)
    return save_checkpoint(folder, scripted_model(table, tokenizer, positions), tokenizer)


def _id(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == 1, (text, ids)
    return int(ids[0])
