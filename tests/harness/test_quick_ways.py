"""What is made once, or without arrays, is what lm-eval makes of every item anew."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from lm_eval.api.task import ConfigurableTask

from cme_bench.harness.choice_scores import METRICS, choice_scores
from cme_bench.harness.cme_task import CmeTask
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.suite import load_suite

SUITE = load_suite()
SHOWN = {
    "cme_mmlu_ll": 2,  # exemplars of the item's own subject
    "cme_winogrande_ll": 3,  # a context for each choice
    "cme_arc_easy_ll": 3,
    "cme_boolq_ll": 2,
    "cme_squad": 2,
    "cme_gsm8k": 2,
}


def task_of(name: str, shots: int = 0) -> Task:
    return build_task(SUITE.tasks[name], SUITE, mini_source(), shots=shots)


def contexts(task: Task, way: Any, **more: Any) -> list[Any]:
    found = []
    for index in range(len(task.docs)):
        task.seed_fewshot(7, index)
        found.append(way(task.lm_eval, task.docs[index], task.shots, **more))
    return found


def as_lm_eval(task: CmeTask, doc: Any, shots: int, **more: Any) -> Any:
    if task._group_field:
        task.sampler.replace_df(task._groups[doc[task._group_field]])
    return ConfigurableTask.fewshot_context(task, doc, shots, **more)


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("more", [{}, {"system_instruction": "Be brief."}, {"gen_prefix": "So:"}])
def test_joined_exemplars_make_the_prompts_of_lm_eval(name: str, more: dict[str, Any]) -> None:
    task = task_of(name, SHOWN[name])
    task.lm_eval.config.description = "Answer {{'now'}}:\n\n" if name != "cme_gsm8k" else ""
    found = contexts(task, CmeTask.fewshot_context, **more)
    assert found == contexts(task, as_lm_eval, **more)
    assert len({str(text) for text in found}) > 1


def test_scores_of_choices_are_those_of_lm_eval() -> None:
    task = task_of("cme_arc_easy_ll").lm_eval
    drawn = random.Random(1)
    asked = {name: name for name in METRICS}
    task._metric_fn_list = asked
    pool = [-2.0, -2.5, -0.125, 0.0, -7.25, -1e-9]
    texts = ["a", "bb", "é", "ddd dd", "ünter", "e"]
    for count, gold in itertools.product((1, 2, 4), range(-1, 4)):
        for _ in range(40):
            choices = drawn.choices(texts, k=count)
            logprobs = drawn.choices(pool, k=count)
            doc = {"x": 0}
            task.doc_to_choice = lambda doc, made=choices: made
            task.doc_to_target = lambda doc, made=gold: made
            theirs = ConfigurableTask.process_results(task, doc, [(p, False) for p in logprobs])
            ours = choice_scores(METRICS, logprobs, choices, gold)
            assert ours == (theirs if gold < count else None)
            assert ours is None or list(ours) == list(theirs)


@pytest.mark.parametrize(
    ("logprobs", "choices", "gold"),
    [
        ([-1.0, -2.0], ["a", ""], 0),
        ([-1.0, -math.inf], ["a", "b"], 0),
        ([-1.0, math.nan], ["a", "b"], 0),
        ([-1.0, -2.0], ["a", "b"], [0, 1]),
        ([-1.0, -2.0], ["a", "b"], "a"),
        ([-1.0, -2.0, -3.0, -4.0], ["a", "b"], 0),
        ([-1.0, -2.0], ["a", "b"], 2),
    ],
)
def test_what_is_out_of_the_ordinary_is_left_to_lm_eval(
    logprobs: list[float], choices: list[str], gold: Any
) -> None:
    assert choice_scores(METRICS, logprobs, choices, gold) is None


@pytest.mark.parametrize("name", ["cme_hellaswag_ll", "cme_winogrande_ll", "cme_sst2_ll", "cme_mmlu_ll"])
def test_items_of_the_suite_are_scored_quickly_and_alike(name: str) -> None:
    task = task_of(name)
    assert task.lm_eval._quick
    drawn = random.Random(2)
    for index in range(len(task.docs)):
        doc = task.docs[index]
        results = [(-drawn.random(), False) for _ in task.lm_eval.doc_to_choice(doc)]
        quick = task.lm_eval.process_results(doc, results)
        task.lm_eval._quick = False
        assert task.lm_eval.process_results(doc, results) == quick
        task.lm_eval._quick = True


def test_choices_and_answers_are_rendered_once_for_both_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lm_eval import utils

    task = task_of("cme_hellaswag_ll").lm_eval
    docs = [task.task_docs[index] for index in range(3)]
    before = [(task.doc_to_choice(doc), task.doc_to_target(doc)) for doc in docs]
    monkeypatch.setattr(utils, "apply_template", lambda *_: pytest.fail("rendered again"))
    assert [(task.doc_to_choice(doc), task.doc_to_target(doc)) for doc in docs] == before


def test_only_so_many_rows_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cme_bench.harness.cme_task.MOST_ROWS", 2)
    task = task_of("cme_hellaswag_ll").lm_eval
    docs = [task.task_docs[index] for index in range(4)]
    wanted = [task.doc_to_choice(dict(doc)) for doc in docs]
    assert [task.doc_to_choice(doc) for doc in [*docs, *docs]] == [*wanted, *wanted]
    assert len(task._rows) <= 2
