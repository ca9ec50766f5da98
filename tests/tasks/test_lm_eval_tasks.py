"""lm-eval's own tasks under ours: the same requests and scores as theirs, on local rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from cme_bench.harness.task_index import tasks_folder
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import render_item
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.scoring.items import score_record
from cme_bench.scoring.record import StoredResponse
from cme_bench.tasks.build import build_task
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json

SUITE = load_suite()
PLAIN = resolve_format("plain", None, generated=False)

LOCAL = """\
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{ a }} + {{ b }} ="
doc_to_target: "{{ a + b }}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
filter_list:
  - {name: number, filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0, anything: goes here}
"""


def stock(task: str, rows: str, split: str, shots_rows: str) -> Any:
    """lm-eval's own task object from its own file, on the mini rows of the dataset that it names."""
    folder = mini_source().folder
    data = {split: str(folder / rows), "train": str(folder / shots_rows)}
    [file] = [file for file in tasks_folder().rglob(f"{task}.yaml") if file.parent.name in (task, "arc")]
    config = load_yaml(file, resolve_func=True)
    config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": data}}
    for key in ("training_split", "validation_split", "test_split"):
        if config.get(key) not in data:
            config.pop(key, None)
    config.pop("tag", None)
    return ConfigurableTask(config=config)


@pytest.mark.parametrize(
    ("task", "rows", "split", "shots_rows"),
    [
        ("hellaswag", "hellaswag/validation.jsonl", "validation", "hellaswag/train.jsonl"),
        ("arc_challenge", "arc_challenge/test.jsonl", "test", "arc_challenge/train.jsonl"),
        ("nq_open", "nq_open/validation.jsonl", "validation", "nq_open/train.jsonl"),
    ],
)
@pytest.mark.parametrize("shots", [0, 2])
def test_a_stock_task_asks_what_it_asks_there(
    task: str, rows: str, split: str, shots_rows: str, shots: int
) -> None:
    theirs = stock(task, rows, split, shots_rows)
    theirs.set_config("num_fewshot", shots)
    theirs.set_fewshot_seed(0)
    theirs.build_all_requests(limit=3)
    spec = SUITE.task(f"lm_eval:{task}")
    ours = build_task(spec, SUITE, mini_source(), shots=shots)
    items = [render_item(ours, index, PLAIN) for index in range(3)]
    found = [instance.args for item in items for instance in item.instances]
    expected = [instance.args for instance in theirs.instances]
    if shots == 0:
        assert found == expected
    else:  # lm-eval draws exemplars in a sequence, ours depend on the item alone: the same form, other rows
        assert [args[1] for args in found] == [args[1] for args in expected]
        assert [args[0].splitlines()[-2:] for args in found] == [
            args[0].splitlines()[-2:] for args in expected
        ]
    if spec.output_type == "multiple_choice":
        record = StoredResponse(logprobs=[-1.0, -2.0, -3.0, -9.0], greedy=[False] * 4)
        scores = score_record(ours.lm_eval, items[0].doc, items[0].instances, record).scores
        expected_scores = theirs.process_results(items[0].doc, record.values)
        assert (scores["acc"], scores["acc_char"]) == (expected_scores["acc"], expected_scores["acc_norm"])


def test_they_run_and_stay_out_of_cmes_average(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "sums.yaml").write_text(LOCAL)
    (tmp_path / "sums.jsonl").write_text('{"a": 1, "b": 2}\n{"a": 3, "b": 4}\n')
    tasks = f"cme_rte_ll,lm_eval:hellaswag,lm_eval:{tmp_path}/sums.yaml"
    options = RunOptions(
        model=str(tiny_checkpoint),
        tasks=tasks,
        data="mini",
        limit=2,
        prompt_format="plain",
        out=tmp_path / "r",
    )
    [folder] = run(options)
    results = read_json(folder / "results.json")["cme"]
    assert {name: task["form"] for name, task in results["tasks"].items()} == {
        "cme_rte_ll": "likelihood",
        "lm_eval:hellaswag": "other likelihood",
        "lm_eval:sums": "other generated",
    }
    assert set(results["forms"]["likelihood"]["domains"]) == {"entailment"}
    assert set(results["tasks"]["lm_eval:sums"]["metrics"]) == {"em@number"}
    assert len(list(read_records(samples_file(folder, "lm_eval:hellaswag")))) == 2


def test_rows_are_found_where_our_task_on_the_dataset_has_them() -> None:
    expected = {
        "hellaswag": ("hellaswag", "validation"),
        "anli_r2": ("anli_r2", "test"),
        "rte": ("rte", "validation"),
        "gsm8k": ("gsm8k", "test"),
        "arc_easy": ("arc_easy", "test"),
    }
    for name, (folder, stem) in expected.items():
        spec = SUITE.task(f"lm_eval:{name}")
        assert (spec.folder, spec.file_stem(spec.eval_split)) == (folder, stem)
    assert SUITE.task("lm_eval:triviaqa").folder == "trivia_qa_rc.nocontext"  # a superset of ours


def test_code_of_another_file_needs_allow_code(tmp_path: Path) -> None:
    file = tmp_path / "sums.yaml"
    file.write_text(LOCAL.replace("metadata:", "process_docs: !function own.f\nmetadata:"))
    (tmp_path / "own.py").write_text("def f(rows): return rows\n")
    (tmp_path / "sums.jsonl").write_text('{"a": 1, "b": 2}\n')
    spec = SUITE.task(f"lm_eval:{file}")
    with pytest.raises(UsageError, match=rf"{file}:12: !function own\.f is Python code"):
        build_task(spec, SUITE, mini_source())


def test_what_cannot_run_is_one_line(tmp_path: Path) -> None:
    for name, message in [
        ("lm_eval:nosuch.yaml", "lm_eval:nosuch.yaml: no such file"),
        ("lm_eval:wikitext", "whole texts are not scored"),
    ]:
        with pytest.raises(UsageError) as caught:
            SUITE.select(name)
        assert message in str(caught.value)


@pytest.mark.slow
def test_groups_and_tags_are_their_tasks() -> None:
    """lm-eval's own index, which reads every file it has, is asked only for these."""
    assert [spec.name for spec in SUITE.select("lm_eval:ai2_arc")] == [
        "lm_eval:arc_challenge",
        "lm_eval:arc_easy",
    ]
    assert len(SUITE.select("lm_eval:mmlu")) == 57
    with pytest.raises(UsageError, match=r"lm-eval has no task 'helaswag'; did you mean 'hellaswag'"):
        SUITE.select("lm_eval:helaswag")
