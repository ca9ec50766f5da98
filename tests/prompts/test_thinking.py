"""Whether a chat template lets its model think, found by rendering it, and what is decided of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from cme_bench.prompts.formats import PromptFormat, resolve_format
from cme_bench.util.errors import UsageError
from tests.support import thinking_templates as templates

ASK = [{"role": "user", "content": "What is 2 + 2?"}]


def with_template(tokenizer: Any, template: str) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def form(
    tokenizer: Any, template: str, thinking: str, *, generated: bool = True, **more: Any
) -> PromptFormat:
    given = with_template(tokenizer, template)
    return resolve_format(more.pop("name", "chat"), given, generated=generated, thinking=thinking, **more)


def tail(found: PromptFormat) -> str:
    """What a prompt has behind its question."""
    assert found.render is not None
    return found.render(ASK).rpartition("2 + 2?")[2]


@pytest.mark.parametrize(
    ("name", "kind", "on", "off", "plain"),
    [
        (
            "QWEN3",
            "switch",
            "<|im_end|>\n<|im_start|>assistant\n",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "SMOLLM3",
            "switch",
            "<|im_end|>\n<|im_start|>assistant\n",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "DEEPSEEK_R1",
            "always",
            "<|Assistant|><think>\n",
            "<|Assistant|><think>\n</think>\n\n",
            "<|Assistant|><think>\n",
        ),
        (
            "DEEPSEEK_V31",
            "switch",
            "<|Assistant|><think>",
            "<|Assistant|></think>",
            "<|Assistant|></think>",
        ),
        ("GLM", "switch", "<|assistant|>", "/nothink<|assistant|>\n<think></think>\n", "<|assistant|>"),
        (
            "GRANITE",
            "switch",
            "<|end|>\n<|start|>assistant\n",
            "<|end|>\n<|start|>assistant\n",
            "<|end|>\n<|start|>assistant\n",
        ),
        (
            "NEMOTRON",
            "switch",
            "\n<s>assistant\n<think>\n\n",
            "\n<s>assistant\n<think></think>\n\n",
            "\n<s>assistant\n<think>\n\n",
        ),
        (
            "SEED",
            "switch",
            "<seed:eos><seed:bos>assistant\n",
            "<seed:eos><seed:bos>assistant\n<seed:think><seed:cot_budget_reflect>\n</seed:think>\n\n",
            "<seed:eos><seed:bos>assistant\n",
        ),
        (
            "HARMONY",
            "maybe",
            "<|end|><|start|>assistant<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>analysis<|message|><|end|>"
            "<|start|>assistant<|channel|>final<|message|>",
            "<|end|><|start|>assistant",
        ),
        (
            "COMMAND",
            "switch",
            "<|chatbot|>",
            "<|chatbot|><|START_THINKING|><|END_THINKING|><|START_RESPONSE|>",
            "<|chatbot|>",
        ),
        (
            "HIDING",
            "maybe",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("NEGATED", "switch", "\nassistant: <reasoning>\n", "\nassistant: ", "\nassistant: <reasoning>\n"),
    ],
)
def test_prompts_by_mode(
    toy_tokenizer: PreTrainedTokenizerFast, name: str, kind: str, on: str, off: str, plain: str
) -> None:
    template = getattr(templates, name)
    for mode, expected in (("on", on), ("off", off), ("template", plain)):
        found = form(toy_tokenizer, template, mode)
        assert found.thinking is not None
        assert (found.thinking.thinker.kind, found.thinking.mode) == (kind, mode)
        assert tail(found) == expected, mode
        assert found.thinking.budgeted == (mode != "off")


def test_a_template_without_thoughts_has_no_mode(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    for mode in ("auto", "off", "template"):
        found = form(toy_tokenizer, templates.PLAIN, mode)
        assert found.thinking is None
        assert not found.notes
    with pytest.raises(UsageError, match="offers no way to think"):
        form(toy_tokenizer, templates.PLAIN, "on")
    with pytest.raises(UsageError, match="--thinking on: prompt format 'plain' has no thoughts"):
        form(toy_tokenizer, templates.QWEN3, "on", name="plain")


@pytest.mark.parametrize(
    ("name", "mode", "budgeted", "words"),
    [
        ("QWEN3", "off", False, "thinking is off (the default; --thinking on, off or template decides"),
        ("DEEPSEEK_V31", "off", False, "thinking is off"),
        ("DEEPSEEK_R1", "template", True, "always opens a thought"),
        ("HIDING", "template", True, "knows thoughts"),
    ],
)
def test_the_default_is_told(
    toy_tokenizer: PreTrainedTokenizerFast, name: str, mode: str, budgeted: bool, words: str
) -> None:
    found = form(toy_tokenizer, getattr(templates, name), "auto")
    assert found.thinking is not None
    assert (found.thinking.mode, found.thinking.budgeted) == (mode, budgeted)
    assert any(words in note for note in found.notes), found.notes


@pytest.mark.parametrize(("name", "closed"), [("QWEN3", True), ("DEEPSEEK_R1", True), ("HIDING", False)])
def test_choices_are_scored_without_a_thought(
    toy_tokenizer: PreTrainedTokenizerFast, name: str, closed: bool
) -> None:
    """A template that only takes thoughts away from earlier turns is no reason to change a prompt."""
    found = form(toy_tokenizer, getattr(templates, name), "auto", generated=False)
    assert tail(found).rstrip().endswith("</think>") == closed
    assert any("without a thought" in note for note in found.notes) == closed
    forced = form(toy_tokenizer, getattr(templates, name), "on", generated=False)
    assert tail(forced).rstrip().endswith("</think>")


def test_an_adapter_is_asked_as_it_was_trained(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    for template, tail_of_it in (
        (templates.QWEN3, "assistant\n"),
        (templates.DEEPSEEK_R1, "<think>\n"),
    ):
        found = form(toy_tokenizer, template, "auto", name="auto", saved="chat")
        assert found.thinking is not None
        assert tail(found).endswith(tail_of_it)
        assert not found.thinking.budgeted
        assert any("prompts are as its adapter was trained" in note for note in found.notes)
    given = form(toy_tokenizer, templates.QWEN3, "off", name="auto", saved="chat")
    assert tail(given).endswith("</think>\n\n")


def test_on_needs_marks(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    unmarked = templates.PLAIN + "{%- if think_hard %}{{- 'Work step by step.' }}{%- endif %}"
    with pytest.raises(UsageError, match="no known marks around a thought"):
        form(toy_tokenizer, unmarked, "on")
    assert form(toy_tokenizer, unmarked, "off").thinking is not None


def test_without_being_asked_nothing_changes(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    """Training and checks of task files leave thoughts to the template."""
    given = with_template(toy_tokenizer, templates.DEEPSEEK_R1)
    found = resolve_format("chat", given, generated=True)
    assert found.thinking is None
    assert tail(found) == "<|Assistant|><think>\n"
