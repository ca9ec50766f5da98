"""Token ids without an embedding: refused where a prompt holds one, else left in peace."""

from __future__ import annotations

import copy

import pytest
from transformers import LlamaConfig, LlavaConfig, PreTrainedTokenizerFast

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.prompts.vocabulary import check_requests, check_vocabulary, embeddings
from cme_bench.training.batches import pad_token
from cme_bench.util.errors import UsageError


@pytest.fixture
def grown(toy_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """With two tokens more, 273 and 274, than the 273 of the model."""
    tokenizer = copy.deepcopy(toy_tokenizer)
    tokenizer.add_tokens(["Answer:", "<|tool|>"])
    return tokenizer


def test_an_id_that_a_prompt_holds_is_refused_with_its_text(grown: PreTrainedTokenizerFast) -> None:
    asked = tuple(grown("Yes? Answer:")["input_ids"])
    message = r"^m: the tokenizer has token ids up to 274, the model 273 embeddings \('Answer:' is 273\)$"
    for request in (
        GenerateRequest(asked, 4, ()),
        LoglikelihoodRequest(((asked, (1,)), (asked, (2, 3)))),
        LoglikelihoodRequest((((1,), (2,)), ((1,), asked))),
    ):
        with pytest.raises(UsageError, match=message):
            check_requests(grown, 273, [GenerateRequest((1,), 4, ()), request], model="m")
        check_requests(grown, 275, [request], model="m")
        check_requests(grown, 320, [request], model="m")  # embeddings are often padded


def test_an_added_token_that_no_prompt_holds_does_no_harm(grown: PreTrainedTokenizerFast) -> None:
    asked = tuple(grown("Yes?")["input_ids"])
    check_requests(grown, 273, [GenerateRequest(asked, 4, ())], model="m")
    check_requests(grown, 273, [], model="m")
    check_vocabulary(grown, 273, 272, model="m")


def test_the_text_part_of_a_config_counts() -> None:
    assert embeddings(LlamaConfig(vocab_size=300)) == 300
    assert embeddings(LlavaConfig(text_config=LlamaConfig(vocab_size=320).to_dict())) == 320


def test_padding_has_an_embedding(grown: PreTrainedTokenizerFast) -> None:
    assert pad_token(grown, 300) == grown.pad_token_id == 272
    grown.add_special_tokens({"pad_token": "<new pad>"})
    assert pad_token(grown, 273) == grown.eos_token_id
    grown.eos_token = None
    assert pad_token(grown, 273) == 0
