"""Runs of a model that says "<think> ... </think> answer": what is cut, what is scored, what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import cme_bench
from cme_bench.reports.run_summary import warnings
from cme_bench.reports.runs import differences, open_run, provenance_notes
from cme_bench.runs.options import RunOptions
from cme_bench.runs.progress import Listener
from cme_bench.runs.records import ThinkingSummary
from cme_bench.runs.rescore import rescore
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.scoring.record import Record
from cme_bench.util.errors import UsageError
from tests.support import thinking_templates as templates
from tests.support.scripted import END, save_scripted

ANSWER = {"\n\n": "yes", "yes": END}
THINKS = ANSWER | {
    "\n": "<think>",
    "<think>": "no no",
    "no no": "hmm",
    "hmm": "so",
    "so": "</think>",
    "</think>": "\n\n",
}
"""From the turn of an answer it thinks five tokens, of which the first two say no, and answers yes."""
ENDLESS = THINKS | {"hmm": "hmm"}
STRAIGHT = ANSWER | {"\n": "yes"}
"""It knows of no thoughts."""

TASK = """\
task: own_gen
dataset_path: own/data
test_split: test
output_type: generate_until
doc_to_text: "{{ question }}"
doc_to_target: "{{ label }}"
doc_to_choice: ["no", "yes"]
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metadata: {dataset: own, answer: {type: label}}
"""


class Notes(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A task of three questions whose answer is yes."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(TASK)
    (tmp_path / "data" / "own").mkdir(parents=True)
    rows = [json.dumps({"question": f"Is {i} a number?", "label": 1}) for i in range(3)]
    (tmp_path / "data" / "own" / "test.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


def asked(files: Path, table: dict[str, str], template: str, **more: Any) -> tuple[Path, Notes]:
    """Run it, and return the folder and what was told."""
    model = files / f"model{len(list(files.glob('model*')))}"
    save_scripted(model, table, template, positions=more.pop("positions", 512))
    settings: dict[str, Any] = {"tasks": "own_gen", "data": str(files / "data"), "out": model / "run"}
    notes = Notes()
    options = RunOptions(model=str(model), include=(files / "tasks",), **settings | more)
    return run(options, notes)[0], notes


def records(folder: Path) -> list[Record]:
    return list(read_records(samples_file(folder, "own_gen")))


def accuracy(folder: Path) -> float:
    return float(open_run(folder).results.tasks["own_gen"].score.value or 0)


@pytest.mark.parametrize(
    ("thinking", "template", "thought"),
    [
        ("on", templates.QWEN3, "no nohmmso"),
        ("template", templates.QWEN3, "no nohmmso"),
        ("off", templates.QWEN3, None),
        ("auto", templates.QWEN3, None),
        ("auto", templates.DEEPSEEK_R1, "no nohmmso"),
        ("off", templates.DEEPSEEK_R1, None),
        ("auto", templates.HIDING, "no nohmmso"),
    ],
)
def test_a_thought_is_cut_and_the_answer_scored(
    files: Path, thinking: str, template: str, thought: str | None
) -> None:
    """Four tokens are enough for the answer whatever the thought takes, and the thought says no."""
    table = THINKS if "R1" not in template and "<|Assistant|>" not in template else THINKS | {"\n": "no no"}
    folder, notes = asked(files, table, template, thinking=thinking)
    for record in records(folder):
        assert (record.response.text, record.response.thought) == ("yes", thought)
        assert record.answer is not None
        assert record.answer.text == "yes"
        if thought is not None:
            assert record.response.thought_end == "closed"
            assert record.response.n_thought == (4 if "<|Assistant|>" in template else 5)
            assert record.response.n_tokens == 2
    assert accuracy(folder) == 1.0
    assert any("can think" in note for note in notes.notes)
    planned = open_run(folder).run.tasks["own_gen"]
    assert planned.thinking == {"auto": "off" if template == templates.QWEN3 else "template"}.get(
        thinking, thinking
    )
    found = open_run(folder).results.tasks["own_gen"].thinking
    if thought is None:
        assert found is None
    else:
        assert found == ThinkingSummary(
            answers=3, thoughts=3, tokens=records(folder)[0].response.n_thought, budget=0, unclosed=0
        )
    [line] = provenance_notes([open_run(folder)], ["m"])
    assert f"thinking {planned.thinking}" in line


def test_a_budget_closes_the_thought_and_the_model_answers(files: Path) -> None:
    folder, notes = asked(files, ENDLESS, templates.QWEN3, thinking="on", thinking_budget=7)
    for record in records(folder):
        assert (record.response.text, record.response.thought) == ("yes", "no no" + 5 * "hmm")
        assert (record.response.thought_end, record.response.n_thought) == ("budget", 7)
    assert accuracy(folder) == 1.0
    found = open_run(folder).results.tasks["own_gen"]
    assert found.thinking is not None
    assert (found.thinking.budget, found.quality["thought_cut"]) == (3, 1.0)
    assert any("a thought has 7 tokens" in note for note in notes.notes)
    assert any("100.0 % " in line and "budget" in line for line in warnings(folder))


def test_an_unclosed_thought_is_no_answer(files: Path) -> None:
    """Thinking is off, the model thinks all the same, and its limit cuts the thought: it said only no."""
    stubborn = ENDLESS | {"\n\n": "<think>"}
    folder, _ = asked(files, stubborn, templates.QWEN3, thinking="off")
    for record in records(folder):
        assert record.response.text == ""
        assert (record.response.thought, record.response.thought_end) == ("no nohmmhmm", "unclosed")
        assert record.answer is not None
        assert record.answer.empty
    found = open_run(folder).results.tasks["own_gen"]
    assert (found.score.value, found.quality["unclosed"], found.quality["empty"]) == (0.0, 1.0, 1.0)
    assert any("never ended" in line for line in warnings(folder))


def test_a_model_that_ends_in_its_thought_has_no_answer(files: Path) -> None:
    folder, _ = asked(files, THINKS | {"hmm": END}, templates.QWEN3, thinking="on")
    assert {(r.response.text, r.response.thought_end) for r in records(folder)} == {("", "unclosed")}


def test_one_that_does_not_think_answers_as_ever(files: Path) -> None:
    on, _ = asked(files, STRAIGHT, templates.QWEN3, thinking="on")
    template, _ = asked(files, STRAIGHT, templates.QWEN3, thinking="template")
    for record in [*records(on), *records(template)]:
        assert (record.response.text, record.response.finish, record.response.n_tokens) == ("yes", "eos", 2)
        assert record.response.thought is None
    assert open_run(on).results.tasks["own_gen"].thinking is None


def test_a_prompt_is_not_cut_for_a_thought(files: Path) -> None:
    """The default budget does not fit into the model, so that a thought gets what is left."""
    folder, notes = asked(files, ENDLESS, templates.QWEN3, thinking="on", positions=80)
    for record in records(folder):
        assert record.truncated == 0
        assert record.response.thought_end == "budget"
        assert record.response.n_thought is not None
        assert 3 < record.response.n_thought < 60
    assert any("3 prompts leave less room than 1024 tokens to think" in note for note in notes.notes)


def test_max_new_tokens_takes_the_place_of_the_tasks_own(files: Path) -> None:
    long = STRAIGHT | {"yes": "yes"}
    folder, notes = asked(files, long, templates.PLAIN.replace("<|assistant|>", "\n"), max_new_tokens=9)
    assert {r.response.n_tokens for r in records(folder)} == {9}
    assert any("--max-new-tokens 9 takes the place" in note for note in notes.notes)
    own, _ = asked(files, long, templates.PLAIN.replace("<|assistant|>", "\n"))
    assert {r.response.n_tokens for r in records(own)} == {4}
    hashes = [open_run(f).run.tasks["own_gen"].hash for f in (folder, own)]
    assert hashes[0] != hashes[1]


def test_rescoring_renders_the_same_prompts(files: Path) -> None:
    for thinking in ("on", "off"):
        folder, _ = asked(files, THINKS, templates.QWEN3, thinking=thinking)
        [task] = rescore(folder)
        assert (task.items, task.changed, task.after) == (3, 0, 1.0)
        assert not task.unchecked


def test_resuming_asks_nothing_again_but_other_thinking_does(files: Path) -> None:
    folder, _ = asked(files, THINKS, templates.QWEN3, thinking="on")
    model = folder.parent
    settings: dict[str, Any] = {"tasks": "own_gen", "data": str(files / "data"), "out": folder}
    for changes, computed in (
        ({"thinking": "on"}, 0),
        ({"thinking": "on", "thinking_budget": 99}, 3),
        ({"thinking": "off"}, 3),
    ):
        run(RunOptions(model=str(model), include=(files / "tasks",), **settings | changes))
        assert open_run(folder).run.sessions[-1].items == computed, changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thinking": "maybe"}, "thinking"),
        ({"thinking": "off", "thinking_budget": 9}, "--thinking-budget is for thoughts"),
        ({"thinking_budget": 9}, "--thinking-budget is for thoughts, and no task has one"),
        ({"thinking_budget": 0, "thinking": "on"}, "at least 1"),
        ({"max_new_tokens": 600}, "leaves no room for a prompt"),
        ({"prompt_format": "plain", "thinking": "on"}, "prompt format 'plain' has no thoughts"),
    ],
)
def test_what_makes_no_sense_is_refused(files: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        asked(files, THINKS, templates.QWEN3, **changes)


def test_runs_that_thought_otherwise_are_not_alike(files: Path) -> None:
    on, _ = asked(files, THINKS, templates.QWEN3, thinking="on")
    off = run(
        RunOptions(
            model=str(on.parent),
            include=(files / "tasks",),
            tasks="own_gen",
            data=str(files / "data"),
            out=files / "off",
        )
    )[0]
    found = differences([open_run(on), open_run(off)])
    assert "thinking differs: off, on" in found
    assert "thoughts differ in own_gen" in found


def test_a_model_in_memory(files: Path) -> None:
    folder = save_scripted(files / "model", THINKS, templates.QWEN3)
    model = AutoModelForCausalLM.from_pretrained(folder)
    settings: dict[str, Any] = {"tasks": "own_gen", "data": files / "data", "include": files / "tasks"}
    [found] = cme_bench.evaluate(
        model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        out=files / "live",
        thinking="on",
        temperature=0.5,
        repeats=2,
        progress=False,
        **settings,
    )
    assert found.scores["own_gen"] == 1.0
    assert len(records(found.folder)) == 6
    assert {r.response.thought for r in records(found.folder)} == {"no nohmmso"}


def test_from_python(files: Path) -> None:
    model = save_scripted(files / "model", THINKS, templates.QWEN3)
    [found] = cme_bench.evaluate(
        model,
        tasks="own_gen",
        data=files / "data",
        include=files / "tasks",
        out=files / "r",
        thinking="on",
        progress=False,
    )
    assert found.scores["own_gen"] == 1.0
