"""Every built-in task on the mini items: it builds, renders, and asks what it should."""

from __future__ import annotations

import functools

import pytest

from cme_bench.prompts.formats import PromptFormat, render_teamlora, resolve_format
from cme_bench.prompts.items import RenderedItem, render_item
from cme_bench.scoring.generation import METRICS
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.suite import load_suite

SUITE = load_suite()
PLAIN = resolve_format("plain", None, generated=False)
CLOZE = {"cme_winogrande_ll", "cme_hellaswag_ll", "cme_openbookqa_ll"}  # the answer goes on with the sentence

MINI = [name for name, spec in SUITE.tasks.items() if spec.domain != "llava15"]
"""Tasks that have mini items; those of LLaVA-1.5 are tested with rows of their own."""
LLM_ADAPTERS = {name for name, spec in SUITE.tasks.items() if spec.prompt_format}


@functools.cache
def built(name: str, shots: int = 0) -> Task:
    return build_task(SUITE.tasks[name], SUITE, mini_source(), shots=shots)


def rendered(name: str, shots: int = 0, form: PromptFormat = PLAIN, seed: int = 0) -> list[RenderedItem]:
    task = built(name, shots)
    return [render_item(task, index, form, seed) for index in range(len(task.docs))]


@pytest.mark.parametrize("name", MINI)
def test_it_renders_every_item(name: str) -> None:
    task, items = built(name), rendered(name)
    assert len(items) >= 12
    for item in items:
        for context in item.contexts:
            assert "{{" not in context
            assert "{%" not in context
            assert "None" not in context
            assert context == context.strip()
            assert name in CLOZE | LLM_ADAPTERS or context.endswith((":", "："))
        assert item.target
        assert len(set(item.choices)) == len(item.choices) or name == "cme_winogrande_ll"
        for choice in item.choices:
            assert choice[0] == " "
            # lm-eval's hellaswag, which ours equals, leaves a space where it takes out "[step]"
            assert choice.strip() == (choice[1:].lstrip() if name == "cme_hellaswag_ll" else choice[1:]) != ""
    if task.spec.output_type == "multiple_choice":
        assert len({item.target for item in items}) > 1  # not always the same answer
        assert {len(item.instances) for item in items} <= {2, 3, 4, 5, 6, 8, 10}
    else:
        settings = task.lm_eval.config.generation_kwargs
        assert settings["do_sample"] is False
        answer = task.spec.metadata["answer"]["type"]
        assert task.spec.primary in METRICS[answer]


@pytest.mark.parametrize(
    "name", [spec.name for spec in SUITE.select("cme,cme_extra,commonsense8,math4,cme_mm")]
)
def test_its_own_gold_answer_is_right_and_another_is_not(name: str) -> None:
    task = built(name)
    for doc in task.docs:
        gold = task.lm_eval.gold_answer(doc)
        if gold.choices:
            assert 0 <= gold.gold < len(gold.choices)
            right, wrong = gold.choices[gold.gold], gold.choices[gold.gold - 1]
        else:
            right, wrong = gold.references[0], "zzz"
        assert task.lm_eval.score_text(doc, right).scores[task.spec.primary] == pytest.approx(1.0)
        assert task.lm_eval.score_text(doc, wrong).scores[task.spec.primary] == 0.0
        assert task.lm_eval.score_text(doc, "").scores[task.spec.primary] == 0.0
        if gold.options:
            assert len(gold.options) == len(gold.choices)
            assert task.lm_eval.score_text(doc, gold.options[gold.gold]).scores["acc"] == 1.0


@pytest.mark.parametrize("name", MINI)
def test_exemplars_come_before_the_same_question(name: str) -> None:
    zero, two = rendered(name)[0], rendered(name, shots=2)[0]
    for bare, context in zip(zero.contexts, two.contexts, strict=True):
        assert context.endswith(f"\n\n{bare}")
        assert context.removesuffix(bare).count("\n\n") >= 2
        assert "{{" not in context
    assert two.choices == zero.choices


def test_mmlu_exemplars_are_of_the_same_subject() -> None:
    for name in ("cme_mmlu", "cme_mmlu_ll"):
        for item in rendered(name, shots=3):
            subject = str(item.doc["subject"]).replace("_", " ")
            assert item.contexts[0].count("Answer the following question about") == 4
            assert item.contexts[0].count(f"Answer the following question about {subject} with") == 4


def test_exemplars_are_the_same_whatever_was_asked_before() -> None:
    whole = rendered("cme_imdb", shots=2)  # drawn at random, by seed and item
    alone = render_item(built("cme_imdb", 2), 7, PLAIN)
    assert alone.contexts == whole[7].contexts
    assert [i.contexts for i in rendered("cme_imdb", shots=2, seed=1)] != [i.contexts for i in whole]


GOLDEN = {
    "cme_rte_ll": (
        "Can the statement be concluded from the text? Answer yes or no.\n\nText: The bakery, founded by two "
        "brothers in 1952, was sold last month to a Dutch food group for 30 million euros.\n"
        "Statement: A Dutch company bought the bakery.\n\nAnswer:",
        (" yes", " no"),
        "yes",
    ),
    "cme_mmlu_ll": (
        "Answer the following question about astronomy with the letter of the right option.\n\n"
        "Question: Which planet has the shortest day, that is, turns fastest on its axis?\n"
        "A. Jupiter\nB. Earth\nC. Mars\nD. Venus\n\nAnswer:",
        (" A", " B", " C", " D"),
        "A",
    ),
    "cme_sciq_ll": (
        "When molten rock cools and hardens, igneous rock is formed. Granite cools slowly underground, and "
        "basalt cools quickly at the surface.\n"
        "Question: What type of rock forms when magma or lava cools?\nAnswer:",
        (" sedimentary", " metamorphic", " organic", " igneous"),
        "igneous",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_prompts(name: str) -> None:
    item = rendered(name)[0]
    assert (item.contexts[0], item.choices, item.target) == GOLDEN[name]
    assert set(item.contexts) == {item.contexts[0]}


def test_a_cloze_fills_each_choice_into_the_context() -> None:
    item = rendered("cme_winogrande_ll")[0]
    assert item.contexts == (
        "We cooled the tea with the ice because the tea",
        "We cooled the tea with the ice because the ice",
    )
    assert item.choices == (" was too hot.", " was too hot.")


def test_in_a_chat_exemplars_are_turns_behind_the_system_prompt(toy_tokenizer: object) -> None:
    form = resolve_format("chat", toy_tokenizer, generated=True, system="Be brief.")
    bare, [one, *_] = rendered("cme_rte"), rendered("cme_rte", shots=1, form=form)
    exemplar, answer = (
        rendered("cme_rte", shots=1)[0].contexts[0].removesuffix(bare[0].contexts[0]).split("Answer: ")
    )
    expected = f"[system] Be brief.\n[user] {exemplar}Answer:\n[assistant] {answer.strip()}\n"
    assert one.contexts[0] == f"{expected}[user] {bare[0].contexts[0]}\n[assistant] "


@pytest.mark.parametrize("name", ["cme_imdb", "cme_mmlu", "cme_rte_ll"])
def test_exemplars_are_known_by_their_place(name: str) -> None:
    task = built(name, 2)
    pool = list(task.lm_eval.fewshot_docs())
    for index, item in enumerate(rendered(name, shots=2)):
        shown = [task.lm_eval.doc_to_text(pool[place]) for place in task.exemplars(0, index)]
        starts = [item.contexts[0].index(text) for text in shown]
        assert len(shown) == 2
        assert starts == sorted(starts)
    assert built(name).exemplars(0, 0) == []


def test_teamlora_format_ends_with_the_separator() -> None:
    form = PromptFormat("teamlora", "separate", render_teamlora)
    item = rendered("cme_rte", form=form)[0]
    assert item.contexts[0] == f"{rendered('cme_rte')[0].contexts[0]}</s>"
    two = rendered("cme_rte_ll", shots=2, form=form)[0]
    assert two.contexts[0].count("</s>") == 5
    assert two.choices == ("yes", "no")


def test_summaries_read_the_same_post_from_the_hubs_fields() -> None:
    task = built("cme_tldr").lm_eval
    doc = {"title": "A title", "post": "A post.", "summary": "Short."}
    hub = {
        "prompt": "SUBREDDIT: r/x\n\nTITLE: A title\n\nPOST: A post.\n\nTL;DR:",
        "completion": "Short.",
    }
    assert task.doc_to_text(hub) == task.doc_to_text(doc)
    assert task.doc_to_target(hub) == task.doc_to_target(doc)


def test_sciq_without_support_has_no_empty_line() -> None:
    doc = dict(built("cme_sciq_ll").docs[0]) | {"support": " "}
    assert built("cme_sciq_ll").lm_eval.doc_to_text(doc).startswith("Question: ")


def test_the_right_option_of_sciq_moves() -> None:
    golds = [built("cme_sciq").lm_eval.gold_answer(doc).gold for doc in built("cme_sciq").docs]
    assert len(set(golds)) >= 3


def test_options_are_those_shown() -> None:
    for name in ("cme_arc_easy", "cme_hellaswag", "cme_mmlu", "cme_sciq", "cme_winogrande"):
        for item, doc in zip(rendered(name), built(name).docs, strict=True):
            gold = built(name).lm_eval.gold_answer(doc)
            for letter, option in zip(gold.choices, gold.options, strict=True):
                assert f"\n{letter}. {option}\n" in item.contexts[0]
