"""Exactly one BOS: families trained with one, the tokenizer's own file, ``--bos``, an adapter's training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from cme_bench.prompts.bos import decide_bos, own_bos, trained_prefix
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.formats import kept_bos, resolve_format
from cme_bench.util.errors import UsageError

BOS = 270  # <s> of the toy tokenizer


@pytest.fixture
def toy(toy_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy that may be changed."""
    return copy.deepcopy(toy_tokenizer)


def named(tokenizer: Any, token: str) -> Any:
    """``tokenizer`` with another BOS token."""
    tokenizer.add_special_tokens({"bos_token": token})
    return tokenizer


@pytest.mark.parametrize(
    ("kind", "token", "added"),
    [
        ("llama", "<s>", True),
        ("llama", "<|begin_of_text|>", True),
        ("llama", "<｜begin▁of▁sentence｜>", True),
        ("qwen2", "<｜begin▁of▁sentence｜>", True),  # a distilled DeepSeek-R1
        ("mistral", "<s>", True),
        ("mixtral", "<s>", True),
        ("gemma", "<bos>", True),
        ("gemma3_text", "<bos>", True),
        ("cohere2", "<BOS_TOKEN>", True),
        ("opt", "</s>", True),  # its BOS is its EOS
        ("llama", "<|im_start|>", False),  # SmolLM2
        ("llama", "<|endoftext|>", False),
        ("mistral", "<|endoftext|>", False),
        ("qwen2", "<|endoftext|>", False),
        ("gpt_neox", "<|endoftext|>", False),
        ("phi3", "<s>", False),
        ("gpt2", "</s>", False),
    ],
)
def test_a_family_that_was_trained_with_one_gets_it_and_the_others_are_left_in_peace(
    toy: PreTrainedTokenizerFast, kind: str, token: str, added: bool
) -> None:
    named(toy, token)
    bos = decide_bos(toy, model_types={kind})
    assert bos.prefix == ((toy.bos_token_id,) if added else ())
    assert (bos.warning is not None) == added
    if added:
        assert "--bos never" in str(bos.warning)
        assert bos.changed


def test_an_unknown_family_is_warned_of(toy: PreTrainedTokenizerFast) -> None:
    for kind, token in (("seed_oss", "<seed:bos>"), ("llama", "<bos>")):
        bos = decide_bos(named(copy.deepcopy(toy), token), model_types={kind})
        assert bos.prefix == ()
        assert "--bos always or never decides" in str(bos.warning)


def test_what_the_tokenizer_adds_is_kept_without_a_word(toy: PreTrainedTokenizerFast) -> None:
    toy.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", 271)]
    )
    bos = decide_bos(toy, model_types={"gpt2"})
    assert (bos.prefix, bos.own, bos.warning) == ((BOS,), (BOS,), None)
    assert not bos.changed


@pytest.mark.parametrize(
    ("kind", "said", "added", "word"),
    [
        ("phi3", True, True, "add_bos_token of tokenizer_config.json"),
        ("llama", False, False, "--bos always adds it"),
        ("phi3", False, False, None),
        ("seed_oss", False, False, None),
    ],
)
def test_what_the_tokenizers_file_says_counts(
    toy: PreTrainedTokenizerFast, tmp_path: Path, kind: str, said: bool, added: bool, word: str | None
) -> None:
    """transformers 5 ignores the key where there is a tokenizer.json."""
    toy.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "add_bos_token": said}))
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    bos = decide_bos(loaded, model_types={kind})
    assert bos.prefix == ((BOS,) if added else ())
    assert (word is None) == (bos.warning is None)
    assert word is None or word in str(bos.warning)


def test_always_and_never_decide(toy: PreTrainedTokenizerFast) -> None:
    assert decide_bos(toy, "always", model_types={"phi3"}).prefix == (BOS,)
    assert decide_bos(toy, "never", model_types={"llama"}).prefix == ()
    toy.backend_tokenizer.post_processor = TemplateProcessing(
        single="<pad> <s> $A", special_tokens=[("<s>", BOS), ("<pad>", 272)]
    )
    assert decide_bos(toy, "always").prefix == (272, BOS)
    assert decide_bos(toy, "never").prefix == (272,)
    toy.bos_token = None
    with pytest.raises(UsageError, match=r"--bos always: the tokenizer of .* has no BOS token"):
        decide_bos(toy, "always")
    assert decide_bos(toy, "auto", model_types={"llama"}).warning is None
    with pytest.raises(UsageError, match="--bos allways: unknown; did you mean 'always'"):
        decide_bos(toy, "allways")


def test_an_adapter_is_asked_as_it_was_trained(toy: PreTrainedTokenizerFast) -> None:
    before = trained_prefix({"prefix_tokens": 0}, toy)  # recorded before --bos
    assert before == ()
    bos = decide_bos(toy, model_types={"llama"}, trained=before)
    assert bos.prefix == ()
    assert "evaluation follows the training" in str(bos.warning)
    now = trained_prefix({"bos": decide_bos(toy, "always").describe(), "prefix_tokens": 1}, toy)
    assert decide_bos(toy, model_types={"phi3"}, trained=now).prefix == (BOS,)
    assert decide_bos(toy, "never", model_types={"phi3"}, trained=now).prefix == ()
    assert trained_prefix({}, toy) is None


TEMPLATES = {
    "begins": "<s>{{ messages[-1]['content'] }}",
    "after blanks": "\n  {{ bos_token }}{{ messages[-1]['content'] }}",
    "in the middle": "SYSTEM {{ bos_token }}[INST] {{ messages[-1]['content'] }} [/INST]",
    "none": "[INST] {{ messages[-1]['content'] }} [/INST]",
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("policy", ["joint", "separate"])
@pytest.mark.parametrize("content", ["Is it?", "The <s>old</s> price?"])
def test_a_chat_has_the_bos_that_it_should_have(
    toy: PreTrainedTokenizerFast, template: str, policy: Any, content: str
) -> None:
    """Exactly one of ours or the template's; what a row says of ``<s>`` does not count."""
    toy.chat_template = TEMPLATES[template]
    form = resolve_format("chat", toy, generated=True)
    assert form.render is not None
    encoder = Encoder(toy, decide_bos(toy, "always"))
    text = form.render([{"role": "user", "content": content}])
    [(ids, rest)] = encoder.encode_pairs([(text, " yes")], policy, rendered=form.renders_bos)
    assert ids == encoder.encode([text], rendered=form.renders_bos)[text]
    assert ids.count(BOS) == 1 + content.count("<s>")
    assert toy.decode(rest) == " yes"
    assert BOS in ids[: encoder.kept(ids, 20)] or template == "in the middle"


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_bos_of_the_template_that_never_meets_is_told(toy: PreTrainedTokenizerFast, template: str) -> None:
    toy.chat_template = TEMPLATES[template]
    form = resolve_format("chat", toy, generated=True)
    told = kept_bos(decide_bos(toy, "never"), form)
    assert bool(told) == (template != "none")
    assert not kept_bos(decide_bos(toy, "always"), form)
    assert not kept_bos(decide_bos(toy, "never"), resolve_format("plain", toy, generated=True))


def test_a_cut_prompt_keeps_a_bos_after_blanks(toy: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(toy, decide_bos(toy, "always"))
    assert encoder.kept((10, 10, BOS, 1, 2, 3), 5) == 3
    assert encoder.kept((BOS, 1, 2, 3, BOS), 3) == 1
    assert encoder.kept((1, 2, 3, 4, 5), 3) == 1
    assert Encoder(toy, own_bos(toy)).kept((10, BOS, 1, 2), 3) == 0
