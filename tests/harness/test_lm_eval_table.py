"""The table of lm-eval's keys names all that the installed lm-eval has; what it refuses is one line."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.registry import (
    DEFAULT_METRIC_REGISTRY,
    aggregation_registry,
    filter_registry,
    get_aggregation,
    get_metric_aggregation,
    metric_registry,
)
from lm_eval.api.samplers import SAMPLER_REGISTRY
from lm_eval.api.task import ALL_OUTPUT_TYPES
from lm_eval.config.group import GroupConfig
from lm_eval.config.task import FewshotConfig, TaskConfig

import cme_bench.tasks.cme_task  # noqa: F401  # registers ours
from cme_bench.harness import lm_eval_table as table
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import render_item
from cme_bench.scoring.items import score_record
from cme_bench.scoring.record import StoredResponse
from cme_bench.tasks.build import build_task
from cme_bench.tasks.sources import BesideSource
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError
from tests.support.workshop import Workshop

PLAIN = resolve_format("plain", None, generated=False)


def names(config: Any) -> set[str]:
    return {field.name for field in fields(config)}


def test_keys_samplers_and_output_types() -> None:
    assert names(TaskConfig) == set(table.TASK_KEYS)
    assert names(FewshotConfig) == set(table.FEWSHOT_KEYS)
    assert names(GroupConfig) <= table.GROUP_KEYS
    assert set(SAMPLER_REGISTRY) == set(table.SAMPLERS)
    assert set(ALL_OUTPUT_TYPES) == set(table.OUTPUT_TYPES)


def test_metrics_and_aggregations() -> None:
    assert set(metric_registry) == set(table.METRICS)
    assert set(aggregation_registry) == set(table.AGGREGATIONS)
    assert set(table.DEFAULT_AGGREGATIONS) == set(metric_registry)
    for metric, name in table.DEFAULT_AGGREGATIONS.items():
        assert get_metric_aggregation(metric) is get_aggregation(name or metric), metric
    for output_type, metrics in DEFAULT_METRIC_REGISTRY.items():
        assert all(output_type in table.METRICS[metric].outputs for metric in metrics)


def test_filters_and_their_options() -> None:
    assert set(filter_registry) == set(table.FILTERS)
    for name, rule in table.FILTERS.items():
        parameters = inspect.signature(filter_registry.get(name).__init__).parameters.values()
        taken = {p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self"}
        assert rule.options == taken or name in ("take_first_k", "custom", "remove_whitespace"), name


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("doc_to_image: 7", "11: 'doc_to_image' must be a column, a list of columns or !function"),
        ("doc_to_image: []", "11: 'doc_to_image' must be a column, a list of columns or !function"),
        ("doc_to_audio: sound", "11: doc_to_audio: sound is not played"),
        ("use_prompt: promptsource:x", "11: use_prompt: prompts of promptsource"),
        ("unsafe_code: true", "11: unsafe_code: code that a model writes is never run"),
        ("custom_dataset: !function own.f", "11: custom_dataset: rows that code makes"),
        ("recipe: x", "11: unknown key 'recipe'"),
        ("repeats: 0", "11: 'repeats' must be a whole number of 1 or more, not 0"),
        ("fewshot_config: {sampler: balanced}", "11: sampler 'balanced' is none of default, first_n"),
        ("fewshot_config: {fewshot_indices: [1]}", "11: fewshot_config.fewshot_indices: lm-eval"),
        ("fewshot_config: {num: 1}", "11: unknown key 'fewshot_config.num'"),
        ("fewshot_config:\n  samples: {a: 1}", "12: 'fewshot_config.samples' must be a list of mappings"),
        ("fewshot_config:\n  samples: []", "12: 'fewshot_config.samples' holds no exemplar"),
        (
            "metric_list:\n  - metric: acc\n  - metric: bleu",
            "13: metric 'bleu' is not computed for output_type",
        ),
        ("metric_list: [{metric: acc_mutual_info}]", "11: metric 'acc_mutual_info': choices are not asked"),
        ("metric_list: [{metric: bypass}]", "11: metric 'bypass': it scores nothing"),
        ("metric_list: [{metric: likelihood}]", "11: aggregation 'mean' does not fit metric 'likelihood'"),
        ("metric_list: [{metric: f1, aggregation: mean}]", "11: aggregation 'mean' does not fit metric 'f1'"),
        ("metric_list: [{metric: acc, aggregation: avg}]", "11: unknown aggregation 'avg'"),
        (
            "metric_list: [{metric: acc, high_is_better: 1}]",
            "11: metric 'acc' takes no 'high_is_better'; did",
        ),
        ("metric_list: [{metric: acc, higher_is_better: 1}]", "11: 'higher_is_better' must be true or false"),
        (
            "metric_list: [{metric: !function own.f}]",
            "11: !function own.f: lm-eval calls a metric's function",
        ),
        ("description: !function own.f", "11: 'description' must be a text, not !function own.f"),
        ("filter_list: []", "11: 'filter_list' is empty, so no answer is scored"),
        ("filter_list: [{filter: [{function: take_first}]}]", "11: an entry of 'filter_list' needs a 'name'"),
        (
            "filter_list: [{name: x, filter: [{function: regexp}]}]",
            "11: unknown filter 'regexp'; did you mean",
        ),
        (
            "filter_list: [{name: x, filter: [{function: regex, pat: x}]}]",
            "11: filter 'regex' takes no 'pat'",
        ),
        (
            "filter_list: [{name: x, filter: [{function: take_first_k, k: 2}]}]",
            "11: take_first_k: k is 2, but",
        ),
        ("filter_list: [{name: x, filter: [{function: custom}]}]", "11: filter 'custom' needs 'filter_fn'"),
        ("dataset_kwargs: {revision: x}", "11: dataset_kwargs.revision: the commit of a dataset"),
        ("dataset_kwargs: {data_files: [1]}", "11: 'data_files' must be a file, a list of files"),
        ("output_type: loglikelihood_rolling", "5: 'output_type' stands twice"),
        ("  scales: {acc: percent}", "11: scale 'percent' of 'acc' is none of share, points"),
    ],
)
def test_what_is_not_honoured_is_one_line_before_any_row_is_read(
    workshop: Workshop, more: str, message: str
) -> None:
    file = workshop.write_yaml(more=more + "\n")
    if "stands twice" in message:
        message = message.replace("5:", "11:")
    with pytest.raises(UsageError) as caught:
        load_suite((file,))
    assert str(caught.value).startswith(f"{file}:{message}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{do_sample: often}", "'do_sample' must be true or false, not 'often'"),
        ("{temperature: -0.7}", "'temperature' must be a number of 0 or more, not -0.7"),
        ("{temperature: hot}", "'temperature' must be a number of 0 or more, not 'hot'"),
        ("{top_p: 1.5}", "'top_p' must be a number above 0, 1 at most, not 1.5"),
        ("{top_k: 2.5}", "'top_k' must be a whole number, not 2.5"),
        ("{num_beams: 2}", "no beam search"),
        ("{max_gen_toks: 0}", "'max_gen_toks' must be a whole number of 1 or more, not 0"),
        ("{max_new_tokens: -1}", "'max_new_tokens' must be"),
        ("{max_tokens: many}", "'max_tokens' must be"),
        ("{until: [1]}", "'until' must be a text or a list of texts"),
        ("{repetition_penalty: 1.1}", "unsupported generation_kwargs: repetition_penalty"),
        ("{untill: x}", "unsupported generation_kwargs: untill; did you mean 'until'?"),
    ],
)
def test_generation_settings(workshop: Workshop, settings: str, message: str) -> None:
    file = workshop.write_yaml(output_type="generate_until", more=f"generation_kwargs: {settings}\n")
    with pytest.raises(UsageError) as caught:
        load_suite((file,))
    assert str(caught.value).startswith(f"{file}:11: ") and message in str(caught.value)


def test_exemplars_of_the_file_are_shown(workshop: Workshop) -> None:
    samples = "[{question: S1, label: 1}, {question: S2, label: 0}]"
    text = workshop.yaml.read_text().replace("fewshot_split: train\n", "")
    workshop.yaml.write_text(
        text + f"num_fewshot: 2\nfewshot_config: {{sampler: first_n, samples: {samples}}}\n"
    )
    task = workshop.build()
    prompt = render_item(task, 1, PLAIN).contexts[0]
    assert prompt == "Q: S1\nA: yes\n\nQ: S2\nA: no\n\nQ: test 1?\nA:"
    assert task.exemplars(0, 1) == [0, 1]
    with pytest.raises(UsageError, match=rf"{workshop.yaml}:11: 3 shots asked for, 2 exemplars there"):
        workshop.build(shots=3)


def test_exemplars_of_a_function_are_shown_and_a_named_split_goes_before(workshop: Workshop) -> None:
    (workshop.yaml.parent / "own.py").write_text("def rows(): return [{'question': 'F', 'label': 0}]\n")
    config = "fewshot_config: {samples: !function own.rows}\n"
    text = workshop.yaml.read_text()
    workshop.yaml.write_text(text.replace("fewshot_split: train\n", "") + config)
    assert "Q: F\nA: no\n\n" in render_item(workshop.build(shots=1, allow_code=True), 0, PLAIN).contexts[0]
    workshop.yaml.write_text(text + config)
    assert "Q: shot" in render_item(workshop.build(shots=1, allow_code=True), 0, PLAIN).contexts[0]


def test_a_bad_exemplar_is_blamed_where_it_stands(workshop: Workshop) -> None:
    workshop.write_rows("train", [{"question": "a", "label": 1}, {"question": "b", "label": -1}])
    task = workshop.build(shots=2)
    with pytest.raises(
        UsageError, match=r"train\.jsonl:2: exemplar of task own_ll: label -1 is out of range"
    ):
        render_item(task, 0, PLAIN)
    text = workshop.yaml.read_text().replace("fewshot_split: train\n", "")
    workshop.yaml.write_text(
        text + "fewshot_config:\n  samples:\n    - {question: x, label: 1}\n    - {label: 0}\n"
    )
    with pytest.raises(UsageError, match=rf"{workshop.yaml}:13: exemplar of task own_ll: .*'question'"):
        render_item(workshop.build(shots=2), 0, PLAIN)


def test_an_item_is_never_its_own_exemplar(workshop: Workshop) -> None:
    """Stock lm-eval leaves it out for a test split, not for a validation split that is scored."""
    text = workshop.yaml.read_text()
    for split in ("test", "validation"):
        workshop.write_rows(split, [{"question": f"{i}?", "label": i % 2} for i in range(4)])
        changed = text.replace("test_split: test", f"{split}_split: {split}").replace("train", split)
        workshop.yaml.write_text(changed)
        task = workshop.build(shots=3)
        for index in range(4):
            assert index not in task.exemplars(0, index)
        with pytest.raises(UsageError, match=rf"{split}\.jsonl: 4 shots asked for, 3 exemplars there"):
            workshop.build(shots=4)


def test_repeats_are_the_same_greedy_answer(workshop: Workshop) -> None:
    workshop.write_yaml(
        output_type="generate_until",
        more="""repeats: 3
doc_to_choice: null
filter_list:
  - {name: first, filter: [{function: take_first}]}
  - {name: vote, filter: [{function: take_first_k, k: 2}, {function: majority_vote}, {function: take_first}]}
metric_list: [{metric: exact_match}]
""".replace("doc_to_choice: null\n", ""),
    )
    workshop.yaml.write_text(
        workshop.yaml.read_text()
        .replace('doc_to_choice: ["no", "yes"]\n', "")
        .replace("label\n", '"{{label}}"\n', 1)
    )
    task = workshop.build()
    item = render_item(task, 1, PLAIN)
    scores = score_record(
        task.lm_eval, item.doc, item.instances, StoredResponse(text="1", finish="stop")
    ).scores
    assert scores == {"em@first": 1.0, "em@vote": 1.0}


@pytest.mark.parametrize(
    ("choices", "metric", "message"),
    [
        ('["a", "b", "c"]', "f1", "multiclass"),
        ('["a", "b"]', "f1", ""),
        ('["a", "b", "c"]', "mcc", ""),
        ('["a", "b", "c"]', "brier_score", ""),
    ],
)
def test_scoring_is_tried_before_a_model_is_loaded(
    workshop: Workshop, choices: str, metric: str, message: str
) -> None:
    file = workshop.write_yaml(more=f"metric_list: [{{metric: {metric}}}]\n")
    file.write_text(file.read_text().replace('["no", "yes"]', choices))
    if message:
        with pytest.raises(UsageError, match=rf"{file}:11: task own_ll cannot be scored: .*{message}"):
            workshop.build()
    else:
        workshop.build()


def test_files_of_rows_in_every_form(tmp_path: Path) -> None:
    """As ``datasets`` reads them: one file or a list is the split train; csv settings are pandas'."""
    task = (
        "task: T{n}\ndataset_path: {kind}\ndataset_kwargs: {kwargs}\ntest_split: {split}\n"
        'doc_to_text: "{{{{q}}}}"\ndoc_to_choice: [a, b]\ndoc_to_target: l\noutput_type: multiple_choice\n'
    )
    (tmp_path / "a.json").write_text('[{"q": "one", "l": 0},\n {"q": "two", "l": 1}]')
    (tmp_path / "b.jsonl").write_text('{"q": "three", "l": 1}\n')
    (tmp_path / "c.csv").write_bytes("'caf\xe9; ok';1\n'b';0\n".encode("latin-1"))
    settings = "delimiter: ';', encoding: latin-1, quotechar: \"'\", header: null, column_names: [q, l]"
    forms = {
        "{data_files: ./a.json}": ("json", "train", ["one", "two"]),
        "{data_files: [a.json, b.jsonl]}": ("json", "train", ["one", "two", "three"]),
        "{data_files: {dev: [b.jsonl], test: a.json}}": ("json", "test", ["one", "two"]),
        f"{{data_files: {{test: c.csv}}, {settings}}}": ("csv", "test", ["caf\xe9; ok", "b"]),
    }
    for n, (kwargs, (kind, split, _)) in enumerate(forms.items()):
        (tmp_path / f"{n}.yaml").write_text(task.format(n=n, kind=kind, kwargs=kwargs, split=split))
    suite = load_suite((tmp_path,))
    for n, (_, _, expected) in enumerate(forms.values()):
        built = build_task(suite.task(f"T{n}"), suite, BesideSource())
        assert built.docs["q"] == expected
    assert build_task(suite.task("T1"), suite, BesideSource()).place(2) == f"{tmp_path / 'b.jsonl'}:1"
    assert build_task(suite.task("T3"), suite, BesideSource()).place(1) == f"{tmp_path / 'c.csv'}:2"


def test_one_odd_file_stops_nobody_else(tmp_path: Path, workshop: Workshop) -> None:
    folder = workshop.yaml.parent
    (folder / "group.yaml").write_text("group: g\ntask: [own_ll]\n")
    (folder / "broken.yaml").write_text("task: [\n")
    (folder / "picture.yaml").write_text(
        workshop.yaml.read_text().replace("own_ll", "pic") + "doc_to_audio: x\n"
    )
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "own.yaml").write_text(workshop.yaml.read_text())
    suite = load_suite((folder,))
    assert suite.task("own_ll").name == "own_ll"
    with pytest.raises(UsageError, match=r"picture\.yaml:11: doc_to_audio"):
        suite.select("pic")
    with pytest.raises(UsageError, match=r"unknown task 'nosuch'.* \(not read: .*broken\.yaml:2: "):
        suite.select("nosuch")
    with pytest.raises(UsageError, match=r"group\.yaml:1: a group of tasks"):
        load_suite((folder / "group.yaml",))
    (folder / "twice.yaml").write_text(workshop.yaml.read_text())
    with pytest.raises(UsageError, match=r"task 'own_ll' is already defined in"):
        load_suite((folder,)).select("own_ll")
