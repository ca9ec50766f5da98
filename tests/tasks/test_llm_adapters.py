"""commonsense8 and math4: prompts as LLM-Adapters publishes them, in the task's own format unless told."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from cme_bench.prompts.alpaca import WRAPPERS
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import render_item
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.tasks.build import build_task
from cme_bench.tasks.sources import FolderSource, mini_source
from cme_bench.tasks.suite import load_suite

SUITE = load_suite()
MC = "Please choose the correct answer to the question: "
# a row of the hub, and what LLM-Adapters' dataset/*/test.json (commit 8166572, Apache-2.0) asks of it
PUBLISHED: dict[str, tuple[dict[str, Any], str, str]] = {
    "commonsense8_boolq": (
        {"question": "is house tax and property tax are same", "passage": "-", "label": 1},
        "Please answer the following question with true or false, question: is house tax and property tax "
        "are same?\n\nAnswer format: true/false",
        "true",
    ),
    "commonsense8_piqa": (
        {
            "goal": "dresser",
            "sol1": "replace drawer with bobby pin ",
            "sol2": "finish, woodgrain with  bobby pin ",
            "label": 1,
        },
        "Please choose the correct solution to the question: dresser\n\nSolution1: replace drawer with bobby "
        "pin \n\nSolution2: finish, woodgrain with  bobby pin \n\nAnswer format: solution1/solution2",
        "solution2",
    ),
    "commonsense8_siqa": (
        {
            "context": "Aubrey never told Riley the answer and Riley was angry.",
            "question": "How would you describe Aubrey?",
            "answerA": "rude",
            "answerB": "smug at knowing the answer",
            "answerC": "annoyed at Riley's response",
            "label": "2",
        },
        f"{MC}Aubrey never told Riley the answer and Riley was angry. How would you describe Aubrey?\n\n"
        "Answer1: rude Answer2: smug at knowing the answer Answer3: annoyed at Riley's response\n\n"
        "Answer format: answer1/answer2/answer3",
        "answer2",
    ),
    "commonsense8_winogrande": (
        {
            "sentence": "Sarah was a much better surgeon than Maria so _ always got the easier cases.",
            "option1": "Sarah",
            "option2": "Maria",
            "answer": "2",
        },
        "Please choose the correct answer to fill in the blank to complete the given sentence: Sarah was a "
        "much better surgeon than Maria so _ always got the easier cases.\n\nOption1: Sarah Option2: Maria "
        "Answer format: option1/option2",
        "option2",
    ),
    "commonsense8_arc_easy": (
        {
            "id": "1",
            "question": "What gas in the air do we need to breathe in order to live?",
            "choices": {
                "text": ["nitrogen", "oxygen", "carbon dioxide", "hydrogen", "water vapor"],
                "label": ["1", "2", "3", "4", "5"],
            },
            "answerKey": "2",
        },
        f"{MC}What gas in the air do we need to breathe in order to live?\n\nAnswer1: nitrogen Answer2: "
        "oxygen Answer3: carbon dioxide Answer4: hydrogen Answer5: water vapor\n\n"
        "Answer format: answer1/answer2/answer3/answer4/answer5",
        "answer2",
    ),
    "commonsense8_openbookqa": (
        {
            "id": "1129",
            "question_stem": "There is most likely going to be fog around:",
            "choices": {
                "text": ["a marsh", "a tundra", "the plains", "a desert"],
                "label": ["A", "B", "C", "D"],
            },
            "answerKey": "A",
        },
        f"{MC}There is most likely going to be fog around:\n\nAnswer1: a marsh Answer2: a tundra Answer3: "
        "the plains Answer4: a desert\n\nAnswer format: answer1/answer2/answer3/answer4",
        "answer1",
    ),
    "math4_aqua": (
        {
            "question": "A rectangular piece of 150 sq m has a length which is 1m more than the 4 times the "
            "breadth. What is the perimeter of the piece?",
            "options": ["A)60 m", "B)61 m", "C)62 m", "D)63 m", "E)64 m"],
            "rationale": "",
            "correct": "C",
        },
        "A rectangular piece of 150 sq m has a length which is 1m more than the 4 times the breadth. What is "
        "the perimeter of the piece? Answer Choices: (A) 60 m (B) 61 m (C) 62 m (D) 63 m (E) 64 m",
        "C",
    ),
    "math4_svamp": (
        {"instruction": "How many more girls than boys?", "input": "", "output": "", "answer": "333.0"},
        "How many more girls than boys?",
        "333.0",
    ),
}


def rendered(folder: Path, name: str, row: dict[str, Any], form: str = "auto", **formats: Any) -> Any:
    """The row's item in the format that a run chooses."""
    spec = SUITE.tasks[name]
    file = folder / spec.folder / f"{spec.eval_split}.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(row) + "\n")
    task = build_task(spec, SUITE, FolderSource(folder))
    chosen = resolve_format(
        form, formats.pop("tokenizer", None), own=spec.prompt_format, generated=True, **formats
    )
    return render_item(task, 0, chosen)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_is_asked_as_it_is_published(tmp_path: Path, name: str) -> None:
    row, instruction, gold = PUBLISHED[name]
    item = rendered(tmp_path, name, row)
    assert item.contexts == (  # generate_prompt of the two scripts, character by character
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        f"request. \n\n                ### Instruction:\n                {instruction}\n\n"
        "                ### Response:\n                ",
    )
    assert item.target == gold


def test_a_format_of_its_own_gives_way_to_the_adapters_and_to_the_users(
    tmp_path: Path, toy_tokenizer: Any
) -> None:
    row, instruction, _ = PUBLISHED["commonsense8_boolq"]
    ask = functools.partial(rendered, tmp_path, "commonsense8_boolq", row)
    assert ask(tokenizer=toy_tokenizer).contexts[0].startswith("Below is")  # though it has a chat template
    assert ask(saved="teamlora").contexts == (f"{instruction}</s>",)
    assert ask("plain").contexts == (instruction,)
    assert ask("chat", tokenizer=toy_tokenizer).contexts == (f"[user] {instruction}\n[assistant] ",)


def test_an_input_has_a_place_of_its_own() -> None:
    wrapper = WRAPPERS["llm-adapters"]
    assert wrapper.wrapped("Add.", "2 + 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n                ### Instruction:\n"
        "                Add.\n\n                ### Input:\n                2 + 2\n\n"
        "                ### Response:\n                "
    )
    shots = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert WRAPPERS["alpaca"](shots).count("### Response:\n") == 2
    assert "### Response:\nb\n\nBelow is" in WRAPPERS["alpaca"](shots)


@pytest.mark.parametrize("name", ["commonsense8_siqa", "math4_aqua"])
def test_stock_lm_eval_asks_the_same(name: str) -> None:
    """The class of the task file puts the format around the question where no run of ours does."""
    from cme_bench.authoring.export import stock_config
    from cme_bench.harness.cme_task import CmeTask

    spec, source = SUITE.tasks[name], mini_source()
    config = stock_config(spec, source)
    ours = build_task(spec, SUITE, source)
    form = resolve_format("auto", None, own=spec.prompt_format, generated=True)
    theirs = CmeTask(config={k: v for k, v in config.items() if k not in ("tag", "class")})
    for index in range(3):
        expected = render_item(ours, index, form).contexts[0]
        assert theirs.fewshot_context(ours.docs[index], 0) == expected


def test_a_run_of_both_suites(tiny_checkpoint: Path, tmp_path: Path) -> None:
    [folder] = run(
        RunOptions(
            str(tiny_checkpoint),
            tasks="commonsense8,math4",
            data="mini",
            limit=1,
            out=tmp_path / "run",
            offline=True,
        )
    )
    for name, spec in SUITE.tasks.items():
        if spec.prompt_format:
            (record,) = read_records(samples_file(folder, name))
            assert record.prompt.endswith("### Response:\n                ")
            assert record.scores.keys() == {"acc", "acc_stated", "answered"}
