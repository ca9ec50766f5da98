"""Training token ids: the prompt as evaluation encodes it, the answer apart, and nothing cut in silence."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.formats import resolve_format
from cme_bench.training.templates import Prompted
from cme_bench.training.tokens import MIN_LENGTH, TokenTable, TrainingEncoder
from cme_bench.util.errors import UsageError

ASKED = Prompted("Is it?\nThe text.", "yes")


def test_teamlora_is_the_authors_prompt(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = TrainingEncoder(toy_tokenizer, "teamlora", 64)
    (example,) = encoder.encode([ASKED])
    source, target = example.ids[: example.source_length], example.ids[example.source_length :]
    eos = toy_tokenizer.eos_token_id
    text = toy_tokenizer("Is it?\nThe text.", add_special_tokens=False)["input_ids"]
    assert list(source) == [*text, eos]  # this tokenizer knows </s>, and adds no BOS by default
    assert list(target) == [*toy_tokenizer("yes", add_special_tokens=False)["input_ids"], eos]


@pytest.mark.parametrize("name", ["teamlora", "chat"])
def test_the_source_is_what_evaluation_sends(toy_tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    (example,) = TrainingEncoder(toy_tokenizer, name, 128).encode([ASKED])
    render = resolve_format(name, toy_tokenizer, generated=True).render
    assert render is not None
    prompt = render([{"role": "user", "content": ASKED.source}])
    assert example.ids[: example.source_length] == Encoder(toy_tokenizer).encode([prompt])[prompt]


def test_chat_ends_the_answer_as_the_template_does(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    before = toy_tokenizer.chat_template
    toy_tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    try:
        (example,) = TrainingEncoder(toy_tokenizer, "chat", 128).encode([ASKED])
    finally:
        toy_tokenizer.chat_template = before
    assert toy_tokenizer.decode(example.ids[example.source_length :]) == "yes<end>"


def test_plain_separates_with_a_space(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    (example,) = TrainingEncoder(toy_tokenizer, "plain", 64).encode([ASKED])
    assert toy_tokenizer.decode(example.ids) == "Is it?\nThe text. yes</s>"


def test_too_long_sources_lose_their_left_and_answers_their_right(
    toy_tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = TrainingEncoder(toy_tokenizer, "teamlora", MIN_LENGTH)
    long_source, long_target, fits = encoder.encode(
        [Prompted("q" * 50 + "end", "yes"), Prompted("q", "z" * 40), ASKED]
    )
    assert len(long_source.ids) == len(long_target.ids) == MIN_LENGTH
    assert toy_tokenizer.decode(long_source.ids).endswith("end</s>yes</s>")
    assert long_source.cut_source == 53 + 1 + 4 - MIN_LENGTH
    assert (long_target.source_length, long_target.cut_source, long_target.cut_target) == (1, 1, 10)
    assert (fits.cut_source, fits.cut_target) == (0, 0)
    table = TokenTable([long_source, long_target, fits])
    assert (table.cut_sources, table.cut_targets) == (2, 1)
    assert table.lengths.tolist() == [MIN_LENGTH, MIN_LENGTH, len(fits.ids)]
    assert tuple(table[2]["ids"]) == fits.ids


def test_impossible_settings(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match="--max-length 31 is too small"):
        TrainingEncoder(toy_tokenizer, "teamlora", 31)
    with pytest.raises(UsageError, match="did you mean 'teamlora'"):
        TrainingEncoder(toy_tokenizer, "teamlara", 64)
