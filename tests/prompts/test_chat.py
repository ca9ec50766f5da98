"""Chat templates: their faults are theirs, no turn is lost, and they are the same every day."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from cme_bench.prompts.chat import ChatTemplate, ChatTemplateError
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.formats import PromptFormat, resolve_format
from cme_bench.prompts.items import build_items, render_item
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError

SUITE = load_suite()
ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<{{ m['role'] }}> {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<model> {% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + ALTERNATE
)
IGNORES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<{{ m['role'] }}> {{ m['content'] }}\n"
    "{% endif %}{% endfor %}"
)
TURNS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
DATED = "Today is {{ strftime_now('%d %b %Y') }}. " + TURNS


def with_template(tokenizer: PreTrainedTokenizerFast, template: Any) -> PreTrainedTokenizerFast:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def task(name: str, *, shots: int = 0, **changes: Any) -> Task:
    spec = SUITE.tasks[name]
    return build_task(
        TaskSpec(spec.name, spec.path, {**spec.config, **changes}, spec.where),
        SUITE,
        mini_source(),
        shots=shots,
    )


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }", None, "chat template fails \\(.*line 1\\)"),
        ("{{ messages[0]['content'] | nothing }}", None, "chat template fails \\(.*nothing"),
        ("{{ nowhere.at_all }}", None, "chat template fails \\(.*undefined"),
        ("{% for m in messages %}{{ m['text'] }}{% endfor %}", None, "leaves out what the user says"),
        (NO_SYSTEM, "Be brief.", "refuses a system prompt \\(System role not supported\\); leave --system"),
        (ALTERNATE, "Be brief.", "refuses a system prompt \\(Conversation roles"),
        (IGNORES_SYSTEM, "Be brief.", "leaves out a system prompt; leave --system out"),
        (
            {"tool_use": TURNS, "rag": TURNS},
            None,
            "several chat templates \\(rag, tool_use\\) and no default",
        ),
    ],
)
def test_a_fault_of_the_template_names_it(
    toy_tokenizer: PreTrainedTokenizerFast, template: Any, system: str | None, message: str
) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        resolve_format("chat", with_template(toy_tokenizer, template), generated=True, system=system)


def test_the_default_of_several_templates_is_taken(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    several = with_template(toy_tokenizer, {"tool_use": "{{ nowhere.at_all }}", "default": TURNS})
    form = resolve_format("auto", several, generated=True)
    assert form.render is not None
    assert form.render([{"role": "user", "content": "Q"}]) == "<user>Q\n"


@pytest.mark.parametrize("template", [NO_SYSTEM, ALTERNATE, IGNORES_SYSTEM])
@pytest.mark.parametrize("shots", [0, 2])
def test_a_description_stands_in_the_first_turn_of_a_template_without_system_role(
    toy_tokenizer: PreTrainedTokenizerFast, template: str, shots: int
) -> None:
    built = task("cme_rte", shots=shots, description="Answer the question.")
    form = resolve_format("chat", with_template(toy_tokenizer, template), generated=True, described=True)
    prompt = render_item(built, 0, form).contexts[0]
    assert prompt.startswith("<user> Answer the question.\n\nCan the statement")
    assert prompt.count("<assistant>") == shots
    assert any("stands at the head of the first user turn" in note for note in form.notes)
    assert not resolve_format("chat", with_template(toy_tokenizer, template), generated=True).notes[1:]


def test_a_template_with_a_system_role_keeps_it(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    built = task("cme_rte", description="Answer the question.")
    form = resolve_format("chat", with_template(toy_tokenizer, TURNS), generated=True, described=True)
    assert render_item(built, 0, form).contexts[0].startswith("<system>Answer the question.\n<user>Can the")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + TURNS,
            "refuses a chat of several turns \\(one turn only\\); use --shots 0",
        ),
        ("<user>{{ messages[-1]['content'] }}", "leaves out earlier turns; use --shots 0"),
    ],
)
def test_exemplars_that_a_template_cannot_show_are_refused(
    toy_tokenizer: PreTrainedTokenizerFast, template: str, message: str
) -> None:
    form = resolve_format("chat", with_template(toy_tokenizer, template), generated=True)
    assert "<user>Can the statement" in render_item(task("cme_rte"), 0, form).contexts[0]
    with pytest.raises(ChatTemplateError, match=message):
        render_item(task("cme_rte", shots=1), 0, form)


def test_what_a_template_refuses_of_one_row_names_the_row(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    template = (
        "{% if 'briskly' in messages[0]['content'] %}{{ raise_exception('no hurry') }}{% endif %}" + TURNS
    )
    form = resolve_format("chat", with_template(toy_tokenizer, template), generated=True)
    built = task("cme_rte")
    rows = [index for index in range(len(built.docs)) if "briskly" in str(built.docs[index])]
    with pytest.raises(
        UsageError, match=rf"rte/validation\.jsonl:{rows[0] + 1}: task cme_rte: the chat template .*no hurry"
    ):
        build_items(built, Encoder(toy_tokenizer), form, max_length=4096)


def test_a_rows_own_fault_still_names_the_row(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    form = resolve_format("chat", with_template(toy_tokenizer, TURNS), generated=True)
    built = task("cme_rte", doc_to_text="{{ 1 // (0 if 'briskly' in sentence1 else 1) }}")
    with pytest.raises(UsageError, match=r"rte/validation\.jsonl:\d+: task cme_rte: .*zero"):
        build_items(built, Encoder(toy_tokenizer), form, max_length=4096)


@pytest.mark.parametrize(
    ("template", "today"),
    [
        (DATED, "26 Jul 2024"),
        ("Today is {{ date_string }}. " + TURNS, "26 Jul 2024"),
        (
            "{% if not date_string is defined %}{% set date_string = '1 Jan 2020' %}{% endif %}"
            "Today is {{ date_string }}. " + TURNS,
            "1 Jan 2020",  # a default of its own is the same every day
        ),
    ],
)
def test_today_is_one_day_in_every_run(
    toy_tokenizer: PreTrainedTokenizerFast, template: str, today: str
) -> None:
    form = resolve_format("chat", with_template(toy_tokenizer, template), generated=True)
    assert form.render is not None
    assert form.render([{"role": "user", "content": "Q"}]).startswith(f"Today is {today}. <user>Q")
    assert any("asks for today's date" in note for note in form.notes) == (today == "26 Jul 2024")


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        ("{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}", "<|assistant|>"),
        (
            "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
            "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}",
            None,  # the end of a question opens the answer
        ),
        (ALTERNATE, None),
        (  # a template that writes an empty thought before old answers, but opens the new one
            "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}<think></think>"
            "{% endif %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
            None,
        ),
    ],
)
def test_a_template_that_does_not_open_the_answers_turn_is_noted(
    toy_tokenizer: PreTrainedTokenizerFast, template: str, opening: str | None
) -> None:
    notes = resolve_format("chat", with_template(toy_tokenizer, template), generated=True).notes
    found = [note for note in notes if "does not open the answer's turn" in note]
    assert len(found) == (opening is not None)
    assert all(repr(opening) in note for note in found)


def test_formats_without_a_template_have_no_notes(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    broken = with_template(toy_tokenizer, "{% broken")
    for name in ("plain", "teamlora"):
        form: PromptFormat = resolve_format(name, broken, generated=True)
        assert (form.notes, form.template, form.renders_bos) == ((), None, False)
    assert ChatTemplate(toy_tokenizer).end_of_answer() == ""
