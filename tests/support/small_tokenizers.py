"""Small BPE tokenizers of the kinds that checkpoints have, and texts that are hard to cut."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_PARTS = (
    "Question:|Answer:| the| |  |\n|\n\n|\t| \n|\r\n|.|.\n|...|'s| 's|don't|12|3456| 7|é|e\u0301| \u0301|"
    "\u00a0|\u2003|\u0085|\x1c|日本|🙂|<x>| <x>|A|B| A|_|(|)| -|\u3000|\u200b|a b|ﬁ| ->| -> |> </|,|, ,|à |±"
)
PARTS = tuple(_PARTS.split("|"))
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
BARE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SINGLE = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r" ?\S+| +|\s"), "isolated"), BARE])
"""Has no space behind anything else in a word."""
SPELLED = normalizers.Replace(" ", "▁")
PREPENDED = normalizers.Sequence([normalizers.Prepend("▁"), SPELLED])


def texts(count: int, seed: int, more: tuple[str, ...] = ()) -> list[str]:
    drawn = random.Random(seed)
    return ["".join(drawn.choices(PARTS + more, k=drawn.randint(1, 30))) for _ in range(count)]


def split(pattern: str, behavior: str = "isolated", *, invert: bool = False) -> Any:
    """A pre-tokenizer that parts by a pattern."""
    return pre_tokenizers.Split(Regex(pattern), behavior=behavior, invert=invert)


def wrapped(backend: Tokenizer, *tokens: AddedToken) -> PreTrainedTokenizerFast:
    backend.add_tokens(list(tokens))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<x>", eos_token="<x>")


def byte_level(
    splits: Any, *tokens: AddedToken, normalizer: Any = None, learned: Any = None, **settings: Any
) -> PreTrainedTokenizerFast:
    """A byte-level BPE that splits as ``splits`` say; its merges were learned with ``learned`` (the same)."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = learned or splits
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<x>"],
    )
    backend.train_from_iterator(texts(600, seed=1), trainer)
    backend.pre_tokenizer = splits
    if normalizer is not None:
        backend.normalizer = normalizer
    tokenizer = wrapped(backend, *tokens)
    for name, value in settings.items():
        setattr(tokenizer.backend_tokenizer.model, name, value)
    return tokenizer


@functools.cache
def _blank_spelled(reaching: bool) -> str:
    """The JSON of a BPE that spells spaces "▁"; ``reaching``: some tokens have words on both sides of one."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = SPELLED
    if not reaching:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["<x>", "<unk>"])
    backend.train_from_iterator(texts(600, seed=1), trainer)
    return str(backend.to_str())


def blank_spelled(
    normalizer: Any,
    splits: Any,
    *tokens: AddedToken,
    reaching: bool = False,
    entries: tuple[tuple[str, str], ...] = (),
    bytes_known: bool = True,
    **settings: Any,
) -> PreTrainedTokenizerFast:
    """A BPE of the SentencePiece kind, with bytes for what it does not know.

    ``entries``: pairs of further merges, which go first.
    """
    state = json.loads(_blank_spelled(reaching))
    model, vocab = state["model"], state["model"]["vocab"]
    kept = ["▁▁", *(entry for entry in vocab if entry not in ("🙂", "日", "±", "▁▁"))]
    merges = [*map(list, entries), ["▁", "▁"], *(pair for pair in model["merges"] if "".join(pair) in kept)]
    more = [part for pair in entries for part in (*pair, "".join(pair))]
    coded = [f"<0x{byte:02X}>" for byte in range(256)] if bytes_known else []
    names = dict.fromkeys([*kept, *more, *coded])
    model |= {
        "vocab": {name: number for number, name in enumerate(names)},
        "merges": [pair for pair in merges if pair[0] in names and pair[1] in names],
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": bytes_known,
        **settings,
    }
    ids = model["vocab"]
    for token in state["added_tokens"]:
        token["id"] = ids[token["content"]]
    backend = Tokenizer.from_str(json.dumps(state))
    backend.normalizer = normalizer
    backend.pre_tokenizer = splits
    return wrapped(backend, *tokens)
