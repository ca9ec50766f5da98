"""Texts to ids: lm-eval's boundary, exactly one BOS, both policies."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.models.smollm2 import model_folder
from cme_bench.prompts.encode import Encoder

PAIRS = [
    ("The cat sat on", " the mat"),
    ("The cat sat on ", "the mat"),
    ("The cat sat on  \n", " the mat"),
    ("Question: x\nAnswer:", " yes"),
    ("Question: x\nAnswer:", " no"),
    ("A. one\nB. two\n\nAnswer:", " B"),
    ("th", "e"),  # one token as a whole
    ("a", "\n"),
    ("He is in", "side"),
    ("x", "y z ünïcode 日本"),
]


def with_bos(tokenizer: PreTrainedTokenizerFast, *, eos: bool = False) -> PreTrainedTokenizerFast:
    """A copy that puts <s> before every text by default, and </s> behind it if ``eos``."""
    adding = copy.deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>" if eos else "<s> $A",
        special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)],
    )
    return adding


@pytest.fixture(params=["toy", "toy with BOS", "SmolLM2"])
def tokenizer(request: pytest.FixtureRequest, toy_tokenizer: PreTrainedTokenizerFast) -> Any:
    if request.param == "SmolLM2":
        if not (Path(model_folder()) / "tokenizer_config.json").is_file():
            pytest.skip("SmolLM2 is not on this machine")
        return AutoTokenizer.from_pretrained(model_folder())
    return toy_tokenizer if request.param == "toy" else with_bos(toy_tokenizer)


def test_joint_pairs_are_lm_evals(tokenizer: Any, tiny_model: LlamaForCausalLM) -> None:
    theirs = HFLM(pretrained=tiny_model, tokenizer=copy.deepcopy(tokenizer), batch_size=1)
    found = Encoder(tokenizer).encode_pairs(PAIRS, "joint")
    expected = [tuple(map(tuple, theirs._encode_pair(*pair))) for pair in PAIRS]
    assert found == expected


def test_contexts_are_lm_evals(tokenizer: Any, tiny_model: LlamaForCausalLM) -> None:
    theirs = HFLM(pretrained=tiny_model, tokenizer=copy.deepcopy(tokenizer), batch_size=1)
    texts = [context for context, _ in PAIRS] + ["", " "]
    found = Encoder(tokenizer).encode(texts)
    assert found == {text: tuple(theirs.tok_encode(text)) for text in texts}


@pytest.mark.parametrize("policy", ["joint", "separate"])
def test_there_is_exactly_one_bos_where_the_model_expects_one(
    toy_tokenizer: PreTrainedTokenizerFast, policy: Any
) -> None:
    bos = toy_tokenizer.bos_token_id
    adding = Encoder(with_bos(toy_tokenizer))
    assert adding.prefix_length == 1
    template = with_bos(toy_tokenizer)
    template.chat_template = "<s>" + str(toy_tokenizer.chat_template)
    chat = template.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    for context in ("plain", "<s>already there", chat, ""):
        [(ids, continuation)] = adding.encode_pairs([(context, " yes")], policy)
        assert (ids[0], ids.count(bos), continuation.count(bos)) == (bos, 1, 0)

    bare = Encoder(toy_tokenizer)  # adds none by default, so it gets none
    assert bare.prefix_length == 0
    [(ids, _)] = bare.encode_pairs([("plain", " yes")], policy)
    assert bos not in ids


def test_an_eos_that_the_tokenizer_adds_is_left_out(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(with_bos(toy_tokenizer, eos=True))
    assert encoder.prefix_length == 1
    for policy in ("joint", "separate"):
        [(context, continuation)] = encoder.encode_pairs([("the cat", " sat")], policy)  # type: ignore[list-item]
        assert toy_tokenizer.eos_token_id not in context + continuation
    assert toy_tokenizer.decode(encoder.encode(["the cat"])["the cat"]) == "<s>the cat"


def test_separate_keeps_what_joint_merges(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(toy_tokenizer)
    the = tuple(toy_tokenizer.encode("the"))
    assert len(the) == 1
    [(joint_context, joint_rest)] = encoder.encode_pairs([("th", "e")], "joint")
    assert (joint_context, joint_rest) == (tuple(toy_tokenizer.encode("th")), ())  # merged away: empty
    [(context, rest)] = encoder.encode_pairs([("th", "e")], "separate")
    assert (context, rest) == (tuple(toy_tokenizer.encode("th")), tuple(toy_tokenizer.encode("e")))
    [(context, rest)] = encoder.encode_pairs([("end ", "yes")], "separate")
    assert toy_tokenizer.decode(context) == "end "
    [(context, rest)] = encoder.encode_pairs([("end ", "yes")], "joint")
    assert (toy_tokenizer.decode(context), toy_tokenizer.decode(rest)) == ("end", " yes")


def test_an_empty_context_becomes_the_start_token(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    for policy in ("joint", "separate"):
        [(context, rest)] = Encoder(toy_tokenizer).encode_pairs([("", "yes")], policy)  # type: ignore[list-item]
        assert (context, rest) == ((toy_tokenizer.bos_token_id,), tuple(toy_tokenizer.encode("yes")))
    without = copy.deepcopy(toy_tokenizer)
    without.bos_token = None
    assert Encoder(without).start_token == toy_tokenizer.eos_token_id


def test_nothing_to_encode_is_nothing(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    assert Encoder(toy_tokenizer).encode([]) == {}
    assert Encoder(toy_tokenizer).encode_pairs([], "joint") == []


def test_the_choices_of_a_context_get_it_as_one_object(tokenizer: Any) -> None:
    pairs = [("A question.", " one"), ("Another.", " two"), ("A question. ", "two"), ("", "three")]
    encoder = Encoder(tokenizer)
    split = encoder.encode_pairs(pairs, "joint")
    assert split[0][0] is split[2][0] and split[0][0] == encoder.encode(["A question."])["A question."]
    assert [encoder.encode_pairs([pair], "joint")[0] for pair in pairs] == split
