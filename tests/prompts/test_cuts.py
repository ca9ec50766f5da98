"""Where texts may be cut: proved for the kinds of tokenizers that checkpoints have, and refused in doubt."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cme_bench.prompts.cuts import BLANK, PATTERNS, Cuts, cuts_of
from tests.support.small_tokenizers import (
    BARE,
    BYTES,
    PREPENDED,
    SINGLE,
    SPELLED,
    blank_spelled,
    byte_level,
    split,
)

METASPACE = pre_tokenizers.Metaspace(split=False)
SEQUENCE = pre_tokenizers.Sequence
PATTERN = min(PATTERNS)


@pytest.mark.parametrize(
    ("normalizer", "cut"),
    [
        (None, True),
        (normalizers.Sequence([]), True),
        (normalizers.NFC(), True),
        (normalizers.Sequence([normalizers.NFC(), normalizers.Sequence([normalizers.NFC()])]), True),
        (normalizers.NFKC(), False),
        (normalizers.Sequence([normalizers.NFKC()]), False),
        (normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]), False),
        (normalizers.Sequence([normalizers.Sequence([normalizers.Strip()])]), False),
    ],
)
def test_a_normalizer_of_a_byte_level_tokenizer_only_composes(normalizer: Any, cut: bool) -> None:
    assert (cuts_of(byte_level(BYTES, normalizer=normalizer)) is not None) is cut


@pytest.mark.parametrize(
    ("splits", "changes"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=True), {}),
        (SEQUENCE([BYTES, pre_tokenizers.ByteLevel(add_prefix_space=True)]), {}),
        (SEQUENCE([BYTES, pre_tokenizers.Metaspace()]), {}),
        (pre_tokenizers.Whitespace(), {}),
        (SEQUENCE([split(r".+"), BARE]), {}),
        (SEQUENCE([split(PATTERN, "merged_with_previous"), BARE]), {}),
        (SEQUENCE([split(PATTERN, "removed"), BARE]), {}),
        (SEQUENCE([split(PATTERN, invert=True), BARE]), {}),
        (SEQUENCE([split(r"\p{N}", "removed", invert=True), BYTES]), {}),
        (SEQUENCE([pre_tokenizers.Punctuation("merged_with_next"), BYTES]), {}),
        (SEQUENCE([BARE, split(PATTERN)]), {"learned": SINGLE}),  # a pattern of letters that are bytes
        (BARE, {}),  # tokens reach over spaces
        (SEQUENCE([split(r"\p{N}"), BARE]), {}),
        (BARE, {"learned": SINGLE, "ignore_merges": True}),
        (BYTES, {"dropout": 0.1}),
        (BYTES, {"continuing_subword_prefix": "#"}),
        (BYTES, {"end_of_word_suffix": "#"}),
    ],
)
def test_other_byte_level_tokenizers_are_not_cut(splits: Any, changes: dict[str, Any]) -> None:
    assert cuts_of(byte_level(splits, **changes)) is None


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("New York"),
        AddedToken("<y>", rstrip=True),
        AddedToken("the", single_word=True),
    ],
)
def test_tokens_that_see_what_follows_them_are_not_cut(token: AddedToken) -> None:
    assert cuts_of(byte_level(BYTES, token)) is None
    assert cuts_of(blank_spelled(PREPENDED, None, token)) is None


def test_a_vocabulary_without_words_on_both_sides_of_a_space_is_proof() -> None:
    assert cuts_of(byte_level(BARE, learned=SINGLE)) == Cuts()
    assert cuts_of(blank_spelled(SPELLED, None)) == Cuts(spelling=BLANK)
    assert cuts_of(blank_spelled(SPELLED, None, entries=((">", "▁"),))) == Cuts("", (">",), BLANK)


def test_a_prefix_before_every_first_word_needs_an_anchor() -> None:
    assert cuts_of(blank_spelled(PREPENDED, None)) == Cuts("a", ("<x>", "<unk>"), BLANK)
    assert cuts_of(blank_spelled(None, METASPACE)) == Cuts("", (), BLANK)


@pytest.mark.parametrize(
    ("normalizer", "splits", "changes"),
    [
        (None, None, {}),  # spaces stay spaces
        (normalizers.Prepend("▁"), None, {}),
        (normalizers.Prepend("a"), METASPACE, {}),
        (normalizers.Replace(" ", "_"), None, {}),
        (normalizers.Sequence([normalizers.Replace("a", "b"), SPELLED]), None, {}),
        (normalizers.Sequence([normalizers.NFKC(), SPELLED]), None, {}),
        (SPELLED, split(".+"), {}),
        (SPELLED, SEQUENCE([METASPACE, METASPACE]), {}),
        (None, pre_tokenizers.Split(" ", behavior="merged_with_previous"), {}),
        (None, pre_tokenizers.Metaspace(replacement="_"), {}),
        (SPELLED, None, {"reaching": True}),
        (SPELLED, None, {"ignore_merges": True}),
        (SPELLED, None, {"entries": (("<0xE3>", "▁"),)}),
        (SPELLED, None, {"entries": (("<unk>", "▁"),)}),
        (SPELLED, None, {"unk_token": None, "bytes_known": False}),  # unknown ones are dropped
        (normalizers.Sequence([normalizers.NFC(), SPELLED]), None, {"entries": ((">", "▁"),)}),
    ],
)
def test_other_tokenizers_with_spelled_spaces_are_not_cut(
    normalizer: Any, splits: Any, changes: dict[str, Any]
) -> None:
    assert cuts_of(blank_spelled(normalizer, splits, **changes)) is None


def test_added_tokens_that_reach_or_are_the_anchor_are_not_cut() -> None:
    assert cuts_of(blank_spelled(SPELLED, None, AddedToken("a▁b"))) is None
    assert cuts_of(blank_spelled(SPELLED, None, AddedToken("a▁b", normalized=False))) is not None
    assert cuts_of(blank_spelled(PREPENDED, None, AddedToken("a"))) is None


def test_a_byte_that_is_dropped_lets_its_neighbours_meet() -> None:
    tokenizer = byte_level(BARE, learned=SINGLE)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    number = state["model"]["vocab"].pop("Ā")
    state["model"]["vocab"]["Āunused"] = number
    backend = Tokenizer.from_str(json.dumps(state))
    assert cuts_of(PreTrainedTokenizerFast(tokenizer_object=backend)) is None


def test_without_a_space_in_its_vocabulary_unknown_words_are_fused() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>", fuse_unk=True))
    backend.normalizer = SPELLED
    assert cuts_of(PreTrainedTokenizerFast(tokenizer_object=backend)) is None


@pytest.mark.parametrize(
    "model", [models.Unigram([("▁", 0.0), ("a", 0.0)]), models.WordPiece({"a": 0}), None]
)
def test_other_models_are_not_cut(model: Any) -> None:
    if model is None:
        assert cuts_of(object()) is None
        return
    backend = Tokenizer(model)
    backend.pre_tokenizer = METASPACE
    assert cuts_of(PreTrainedTokenizerFast(tokenizer_object=backend)) is None
