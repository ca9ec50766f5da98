"""Prompt formats: which one is taken, and what it makes of messages."""

from __future__ import annotations

import copy
import re

import pytest
from transformers import PreTrainedTokenizerFast

from cme_bench.prompts.formats import PromptFormat, render_teamlora, resolve_format
from cme_bench.util.errors import UsageError

CHAT = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "3+3?"},
]


@pytest.mark.parametrize(
    ("name", "saved", "generated", "template", "expected"),
    [
        ("auto", None, True, True, "chat"),
        ("auto", None, True, False, "plain"),
        ("auto", None, False, True, "plain"),
        ("auto", "teamlora", False, True, "teamlora"),
        ("auto", "teamlora", True, True, "teamlora"),
        ("auto", "plain", True, True, "plain"),
        ("plain", "teamlora", True, True, "plain"),
        ("chat", None, False, True, "chat"),
        ("teamlora", None, True, False, "teamlora"),
    ],
)
def test_which_format_is_taken(
    toy_tokenizer: PreTrainedTokenizerFast,
    name: str,
    saved: str | None,
    generated: bool,
    template: bool,
    expected: str,
) -> None:
    tokenizer = copy.deepcopy(toy_tokenizer)
    if not template:
        tokenizer.chat_template = None
    form = resolve_format(name, tokenizer, saved=saved, generated=generated)
    assert form.name == expected
    assert form.policy == ("separate" if expected == "teamlora" else "joint")
    assert (form.render is None) == (expected == "plain")


def test_unknown_formats_and_a_missing_template_are_one_line(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match="unknown prompt format 'chatt'; did you mean 'chat'"):
        resolve_format("chatt", toy_tokenizer, generated=True)
    bare = copy.deepcopy(toy_tokenizer)
    bare.chat_template = None
    for tokenizer in (bare, None):
        with pytest.raises(UsageError, match="no chat template"):
            resolve_format("chat", tokenizer, generated=True)


def test_chat_opens_the_answer_or_goes_on_with_it(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    render = resolve_format("chat", toy_tokenizer, generated=True).render
    assert render is not None
    whole = "[user] 2+2?\n[assistant] 4\n[user] 3+3?\n"
    assert render(CHAT) == f"{whole}[assistant] "
    begun = [*CHAT, {"role": "assistant", "content": "The answer"}]
    assert render(begun, add_generation_prompt=False) == f"{whole}[assistant] The answer"


def test_two_system_prompts_are_two_formats(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    def resolve(name: str, system: str | None) -> PromptFormat:
        return resolve_format(name, toy_tokenizer, generated=True, system=system)

    none, brief, kind = (resolve("chat", system) for system in (None, "Be brief.", "Be kind."))
    assert none.name == resolve("chat", "").name == "chat"
    assert re.fullmatch("chat\\+system [0-9a-f]{8}", brief.name)
    assert brief.name != kind.name
    assert (brief.system, brief.policy) == ("Be brief.", "joint")
    for name in ("plain", "teamlora"):
        with pytest.raises(UsageError, match=f"--system: prompt format '{name}' has no place for it"):
            resolve(name, "Be brief.")


def test_teamlora_is_the_authors_training_prompt() -> None:
    assert render_teamlora([{"role": "user", "content": "instruction\ninput"}]) == "instruction\ninput</s>"
    assert render_teamlora(CHAT) == "2+2?</s>4</s>3+3?</s>"
    assert render_teamlora(CHAT[:2], add_generation_prompt=False) == "2+2?</s>4"
