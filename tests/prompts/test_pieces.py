"""Texts tokenised piece by piece have the ids that they have in one go, for every kind that may be cut."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.pieces import PATTERNS, Pieces, last_piece, may_cut

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
BARE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
KINDS: dict[str, Any] = {
    "gpt2": BYTES,
    "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    **{
        f"pattern{number}": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), BARE]
        )
        for number, pattern in enumerate(sorted(PATTERNS))
    },
}
PARTS = tuple(
    "Question:|Answer:| the| |  |\n|\n\n|\t| \n|\r\n|.|.\n|...|'s| 's|don't|12|3456| 7|é|e\u0301| \u0301|"
    "\u00a0|\u2003|\u0085|\x1c|日本|🙂|<x>| <x>|A|B| A|_|(|)| -|\u3000|\u200b|a b|ﬁ".split("|")
)


def trained(
    splits: Any, *, token: AddedToken | None = None, normalizer: Any = None
) -> PreTrainedTokenizerFast:
    """A small byte-level BPE whose tokens come from the parts that the texts are made of."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = splits
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<x>"],
    )
    backend.train_from_iterator(texts(600, seed=1), trainer)
    if token is not None:
        backend.add_tokens([token])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<x>", eos_token="<x>")


def texts(count: int, seed: int) -> list[str]:
    drawn = random.Random(seed)
    return ["".join(drawn.choices(PARTS, k=drawn.randint(1, 30))) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_and_pair_as_in_one_go(kind: str) -> None:
    tokenizer = trained(KINDS[kind], normalizer=normalizers.NFC() if kind == "gpt2" else None)
    assert may_cut(tokenizer)
    encoder = Encoder(tokenizer)
    asked = texts(400, seed=2)
    assert Pieces(tokenizer).ids(asked) == encoder._tokenised(asked)
    pairs = [(a, b) for a, b in zip(asked, texts(400, seed=3), strict=True) if a]
    assert Pieces(tokenizer).pairs(pairs) == encoder._whole_pairs(pairs)
    assert encoder.encode_pairs(pairs, "joint") == encoder.encode_pairs(list(pairs), "joint")
    assert encoder._pieces is not None and encoder._pieces.right, "the trial found no difference"


@pytest.mark.parametrize(
    ("splits", "changes"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=True), {}),
        (pre_tokenizers.Whitespace(), {}),
        (pre_tokenizers.Metaspace(), {}),
        (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r".+"), behavior="isolated"), BARE]), {}),
        (BARE, {}),
        (BYTES, {"normalizer": normalizers.NFKC()}),
        (BYTES, {"token": AddedToken("New York")}),
        (BYTES, {"token": AddedToken("<y>", rstrip=True)}),
        (BYTES, {"token": AddedToken("the", single_word=True)}),
    ],
)
def test_other_kinds_are_not_cut(splits: Any, changes: dict[str, Any]) -> None:
    assert not may_cut(trained(splits, **changes))


def test_a_difference_in_the_first_texts_ends_the_cutting(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = trained(BARE)  # its tokens reach over spaces
    monkeypatch.setattr("cme_bench.prompts.pieces.may_cut", lambda tokenizer: True)
    encoder = Encoder(tokenizer)
    asked = texts(64, seed=4)
    found = encoder.encode(asked, special=False)
    assert encoder._pieces is not None and not encoder._pieces.right
    assert list(found.values()) == encoder._tokenised(list(dict.fromkeys(asked)))


def test_the_last_piece_begins_with_a_space_behind_a_word() -> None:
    assert last_piece("one two\nAnswer:") == " two\nAnswer:"
    assert last_piece("one   ") == "   "
    assert last_piece("\n one") == "\n one"
    assert last_piece(" ") == " "
    assert last_piece("") == ""
