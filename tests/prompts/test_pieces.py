"""Texts tokenised piece by piece have the ids that they have in one go, for every kind that may be cut."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cme_bench.prompts.cuts import LOCAL, PATTERNS, Cuts, cuts_of
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.pieces import Pieces, last_piece, pieces_of, tokenised, whole_pairs
from tests.support.small_tokenizers import (
    BARE,
    BYTES,
    PARTS,
    PREPENDED,
    SINGLE,
    SPELLED,
    blank_spelled,
    byte_level,
    split,
    texts,
)

Maker = Callable[[], PreTrainedTokenizerFast]
TOKENS = (
    AddedToken("<r>", rstrip=True, normalized=False),
    AddedToken("<l>", lstrip=True, normalized=False),
    AddedToken("<n>"),
    AddedToken("<nl>", lstrip=True),
    AddedToken("  ", normalized=False),
    AddedToken("\n\n", normalized=False),
)
NAMED = ("<r>", " <r>", "<l>", " <l>", "<n>", " <n>", "<nl>", "<unk>", " <unk>", "   ")
SPELT = ("▁", " ▁", "<0x0A>")
GAPS = pre_tokenizers.Split(" ", behavior="merged_with_previous")
KINDS: dict[str, Maker] = {
    "gpt2": functools.partial(byte_level, BYTES, normalizer=normalizers.NFC()),
    "gpt2-tokens": functools.partial(byte_level, BYTES, *TOKENS),
    "nothing-normalised": functools.partial(byte_level, BYTES, normalizer=normalizers.Sequence([])),
    "digits": functools.partial(
        byte_level, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])
    ),
    "falcon": functools.partial(
        byte_level,
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                BYTES,
                pre_tokenizers.Digits(individual_digits=False),
                split("[0-9][0-9][0-9]"),
            ]
        ),
    ),
    "deepseek": functools.partial(
        byte_level,
        pre_tokenizers.Sequence(
            [
                split(r"\p{N}{1,3}"),
                split("[一-龥぀-ゟ゠-ヿ]+"),
                split(next(p for p in PATTERNS if "A-Za-z" in p)),
                BARE,
            ]
        ),
    ),
    **{
        f"pattern{number}": functools.partial(
            byte_level, pre_tokenizers.Sequence([split(pattern), BARE]), ignore_merges=number % 2 == 0
        )
        for number, pattern in enumerate(sorted(PATTERNS))
    },
    "removed": functools.partial(
        byte_level,
        pre_tokenizers.Sequence([split(sorted(PATTERNS)[0], "removed", invert=True), BARE]),
    ),
    **{
        f"local{number}": functools.partial(
            byte_level, pre_tokenizers.Sequence([split(pattern), BARE]), learned=SINGLE
        )
        for number, pattern in enumerate(sorted(LOCAL))
    },
    "llama2": functools.partial(blank_spelled, PREPENDED, None),
    "llama2-tokens": functools.partial(blank_spelled, PREPENDED, None, *TOKENS),
    "llama2-composed": functools.partial(
        blank_spelled, normalizers.Sequence([normalizers.NFC(), PREPENDED]), None
    ),
    "no-bytes": functools.partial(blank_spelled, PREPENDED, None, bytes_known=False),
    "gemma": functools.partial(blank_spelled, SPELLED, GAPS, *TOKENS),
    "gemma-closers": functools.partial(blank_spelled, SPELLED, GAPS, entries=((">", "▁"),)),
    **{
        f"metaspace-{scheme}-{parted}": functools.partial(
            blank_spelled,
            None,
            pre_tokenizers.Metaspace(prepend_scheme=scheme, split=parted),
            *TOKENS,
            reaching=parted,
        )
        for scheme in ("first", "always", "never")
        for parted in (False, True)
    },
}


@functools.cache
def made(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_and_pair_as_in_one_go(kind: str) -> None:
    tokenizer = made(kind)
    encoder = Encoder(tokenizer)
    asked = ["", " ", *texts(300, seed=2), *texts(300, seed=3, more=NAMED), *texts(100, seed=4, more=SPELT)]
    pieces = pieces_of(tokenizer)
    assert pieces is not None
    assert pieces.ids(asked) == tokenised(tokenizer, asked)
    pairs = [(a, b) for a, b in zip(asked, reversed(asked), strict=True) if a]
    pieces = pieces_of(tokenizer)
    assert pieces is not None
    assert pieces.pairs(pairs) == whole_pairs(tokenizer, pairs)
    assert encoder.encode_pairs(pairs, "joint") == encoder.encode_pairs(list(pairs), "joint")
    assert encoder._pieces is not None and encoder._pieces.right, "the trial found no difference"


@pytest.mark.parametrize("kind", KINDS)
def test_most_texts_are_cut(kind: str) -> None:
    """None of an ordinary text is tokenised whole, even one with added tokens."""
    pieces = pieces_of(made(kind))
    assert pieces is not None
    found = pieces._find(texts(100, seed=2, more=NAMED), pieces._heads)
    assert all(ids is not None for ids in found)
    assert len(pieces._words) < 3000


LETTERS = st.sampled_from(" \n\t'sa1é\u0301\u00a0>▁<日🙂.,\r") | st.characters(codec="utf-8")
SPOKEN = st.lists(st.sampled_from((*PARTS, *NAMED, *SPELT)) | LETTERS, max_size=12).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@given(context=SPOKEN, continuation=SPOKEN)
def test_any_text_as_in_one_go(kind: str, context: str, continuation: str) -> None:
    tokenizer = made(kind)
    pieces = pieces_of(tokenizer)
    assert pieces is not None
    asked = [context, continuation, context + continuation]
    assert pieces.ids(asked) == tokenised(tokenizer, asked)
    pairs = [(a, b) for a, b in ((context, continuation), (continuation, context)) if a]
    assert pieces.pairs(pairs) == whole_pairs(tokenizer, pairs)


@pytest.mark.parametrize(
    ("kind", "less", "asked"),
    [
        ("llama2", {"anchor": ""}, "Question: A B"),
        ("llama2", {"closers": ()}, "A<x> B"),
        ("llama2", {"spelling": ""}, "A▁ B"),
        ("metaspace-never-False", {"closers": ()}, "A<r> B"),
        ("gemma-closers", {"closers": ()}, "A> </ B"),
        ("gpt2-tokens", {"closers": ()}, "A<r> B"),
    ],
)
def test_without_a_guard_ids_differ(kind: str, less: dict[str, object], asked: str) -> None:
    """Each part of what is known of a tokenizer is needed."""
    tokenizer = made(kind)
    cuts = cuts_of(tokenizer)
    assert cuts is not None
    asked = f"the {asked}\nthe {asked} the"
    whole = tokenised(tokenizer, [asked])
    assert Pieces(tokenizer, cuts).ids([asked]) == whole
    assert Pieces(tokenizer, replace(cuts, **less)).ids([asked]) != whole  # type: ignore[arg-type]


def test_a_difference_in_the_first_texts_ends_the_cutting(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level(BARE)  # its tokens reach over spaces
    monkeypatch.setattr("cme_bench.prompts.pieces.cuts_of", lambda tokenizer: Cuts())
    encoder = Encoder(tokenizer)
    asked = texts(64, seed=4)
    found = encoder.encode(asked, special=False)
    assert encoder._pieces is not None and not encoder._pieces.right
    assert list(found.values()) == tokenised(tokenizer, list(dict.fromkeys(asked)))


def test_padding_of_another_call_is_not_taken_for_ids() -> None:
    tokenizer = byte_level(BYTES)
    pieces = pieces_of(tokenizer)
    assert pieces is not None
    asked = texts(20, seed=5)
    tokenizer.pad_token = "<x>"
    tokenizer(asked, padding=True, truncation=True, max_length=3)
    assert tokenizer.backend_tokenizer.padding is not None
    assert pieces.ids(asked) == tokenised(tokenizer, asked)


def test_the_last_piece_begins_with_a_space_behind_a_word() -> None:
    assert last_piece("one two\nAnswer:") == " two\nAnswer:"
    assert last_piece("one   ") == "   "
    assert last_piece("\n one") == "\n one"
    assert last_piece(" ") == " "
    assert last_piece("") == ""
    assert last_piece("one two> </ three", (">", "</")) == " two> </ three"
