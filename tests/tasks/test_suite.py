"""The suite as a whole: what it holds, how it is selected, what a task file may say."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from lm_eval.config.task import TaskConfig
from lm_eval.tasks import TaskManager

from cme_bench.tasks.made.make import splits_of
from cme_bench.tasks.spec import TASK_KEYS, TaskSpec
from cme_bench.tasks.suite import DOMAINS, builtin_folder, load_suite
from cme_bench.util.errors import UsageError
from tests.support.workshop import Workshop

SUITE = load_suite()


def test_cme_is_22_datasets_in_11_domains() -> None:
    specs = SUITE.select("cme")
    assert list(dict.fromkeys(spec.domain for spec in specs)) == list(DOMAINS)
    assert len({spec.dataset for spec in specs}) == 22
    assert {spec.dataset for spec in SUITE.select("cme_ll")} < {spec.dataset for spec in specs}


SUITES = {
    "cme": "efc660d5141f",
    "cme_ll": "d046615adbd6",
    "cme2": "52448217a270",
    "cme2_ll": "cf5bc333cec2",
}


def test_version_2_adds_to_the_suite_and_leaves_it_as_it_was() -> None:
    for later, earlier in (("cme2", "cme"), ("cme2_ll", "cme_ll")):
        old, new = ([spec.name for spec in SUITE.select(name)] for name in (earlier, later))
        assert [name for name in new if name not in old] == [f"cme_snli_2way{later[4:]}"]
        assert [name for name in new if name in old] == old
    assert not {spec.name for spec in SUITE.select("entailment,entailment_ll,nli,nli_ll")} & {
        "cme_snli_2way",
        "cme_snli_2way_ll",
    }


def test_each_version_of_the_suite_has_a_hash_of_its_own() -> None:
    """A suite of other tasks gets a name of its own, as cme2 did; new versions of tasks change the hash."""
    assert {name: SUITE.hash_of(name)[:12] for name in SUITES} == SUITES


def test_every_task_says_where_its_rows_come_from_and_what_guessing_gives() -> None:
    for spec in SUITE.tasks.values():
        assert {"version", "licence", "citation", "folder"} <= spec.metadata.keys(), spec.name
        assert spec.num_fewshot == 0
        if spec.domain == "llava15":
            assert spec.name.startswith("llava15_") and spec.tags == ("llava15",) and spec.items
            continue
        if spec.prompt_format is not None:
            assert spec.tags == (spec.domain,) and spec.name.startswith(f"{spec.domain}_")
            assert spec.prompt_format == "llm-adapters" and spec.items and spec.fewshot_split
            continue
        assert spec.name.startswith("cme_")
        if spec.domain == "multimodal":
            check_multimodal(spec)
            continue
        likelihood = spec.output_type == "multiple_choice"
        assert spec.name.endswith("_ll") == likelihood
        suite = "cme_extra" if not spec.in_cme else "cme2_adds" if "snli_2way" in spec.name else "cme"
        assert spec.tags == ((f"{suite}_ll",) if likelihood else (suite,))
        assert spec.items and spec.fewshot_split
        assert 0 <= spec.metadata["random_baseline"] < 1
        if spec.primary.startswith("acc"):
            choices = spec.config.get("doc_to_choice")  # numbers have none
            expected = 1 / len(choices) if isinstance(choices, list) else None
            assert expected is None or spec.metadata["random_baseline"] == pytest.approx(expected, abs=1e-4)


def check_multimodal(spec: TaskSpec) -> None:
    likelihood = spec.output_type == "multiple_choice"
    assert spec.name.startswith("cme_mm_") and spec.name.endswith("_ll") == likelihood
    assert spec.tags == (("cme_mm_ll",) if likelihood else ("cme_mm",)) and not spec.in_cme
    assert 0 < spec.metadata["random_baseline"] <= spec.metadata["majority_baseline"] + 1e-9 < 1
    assert spec.items and spec.fewshot_split == "train" and spec.config["doc_to_image"] == "image"
    assert set(spec.file_stems(spec.eval_split)) & set(splits_of(spec.dataset))


def test_selection_is_by_task_domain_and_suite_without_repeats() -> None:
    def names(selection: str | list[str]) -> list[str]:
        return [spec.name for spec in SUITE.select(selection)]

    assert names("entailment, cme_rte,entailment_ll") == ["cme_rte", "cme_rte_ll"]
    assert names(["science"]) == ["cme_arc_challenge", "cme_arc_easy", "cme_openbookqa", "cme_sciq"]
    assert "cme_tldr" not in names("cme_ll")
    assert names("cme_extra,cme_extra_ll") == ["cme_cmmlu", "cme_samsum", "cme_gsm8k", "cme_cmmlu_ll"]
    assert names("commonsense8") == [
        f"commonsense8_{name}"
        for name in "arc_challenge arc_easy boolq hellaswag openbookqa piqa siqa winogrande".split()
    ]
    assert names("math4") == [f"math4_{name}" for name in ("aqua", "gsm8k", "mawps", "svamp")]
    everything = "cme2,cme2_ll,cme_extra,cme_extra_ll,commonsense8,math4,cme_mm,cme_mm_ll,llava15"
    assert {*names(everything)} == set(SUITE.tasks)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("cme_rte_l", "unknown task 'cme_rte_l'; did you mean 'cme_rte_ll'?"),
        ("cme,sience", "unknown task 'sience'; did you mean 'science'?"),
        ("qqqqqqqq", "unknown task 'qqqqqqqq'"),
        (" , ", "no task named"),
    ],
)
def test_unknown_names_get_the_nearest_known_one(selection: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        SUITE.select(selection)
    assert str(caught.value) == message
    with pytest.raises(UsageError, match="did you mean 'cme_rte'"):
        SUITE.task("cme_rtee")


def test_the_keys_we_accept_are_lm_evals() -> None:
    assert {field.name for field in fields(TaskConfig)} == TASK_KEYS


def test_stock_lm_eval_indexes_every_built_in_file() -> None:
    manager = TaskManager(include_path=str(builtin_folder()), include_defaults=False)
    assert set(manager.all_subtasks) == set(SUITE.tasks)
    tags = {"cme", "cme_ll", "cme_extra", "cme_extra_ll", "commonsense8", "math4"}
    tags |= {"cme2_adds", "cme2_adds_ll", "cme_mm", "cme_mm_ll", "llava15"}
    assert set(manager.all_tags) == tags


@pytest.mark.parametrize(
    ("more", "line", "message"),
    [
        ("doc_to_txt: x\n", 11, "unknown key 'doc_to_txt'; did you mean 'doc_to_text'?"),
        ("  licens: MIT\n", 11, "unknown key 'metadata.licens'; did you mean 'licence'?"),
        (
            "  answer: {type: labels}\n",
            11,
            "answer type 'labels' is none of label, letter, short, summary, number, math, first_choice, "
            "last_number",
        ),
        ("  answer: {typ: label}\n", 11, "unknown key 'metadata.answer.typ'; did you mean 'type'?"),
        ("  answer: label\n", 11, "'metadata.answer' must be a mapping with a 'type'"),
        ("metric_list: acc\n", 11, "'metric_list' must be a list of mappings with a 'metric'"),
    ],
)
def test_a_wrong_key_is_named_with_file_line_and_the_nearest_one(
    workshop: Workshop, more: str, line: int, message: str
) -> None:
    file = workshop.write_yaml(more=more)
    with pytest.raises(UsageError) as caught:
        load_suite((file,))
    assert str(caught.value) == f"{file}:{line}: {message}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("multiple_choice", "multiple_choise", ":5: output_type 'multiple_choise' is none of"),
        ("test_split: test\n", "", ":1: no test_split and no validation_split"),
        ("doc_to_target: label\n", "", ":1: no 'doc_to_target'"),
        ("task: own_ll\n", "", ":1: no 'task' key"),
        ("task: own_ll", "task: cme_rte", ":1: task 'cme_rte' is already defined in"),
        ("metadata:\n  dataset: own", "metadata: own", ":9: 'metadata' must be a mapping"),
    ],
)
def test_a_task_file_that_cannot_work_is_refused(
    workshop: Workshop, old: str, new: str, message: str
) -> None:
    file = workshop.write_yaml()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UsageError) as caught:
        load_suite((file,))
    assert str(caught.value).startswith(f"{file}{message}")


def test_an_include_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder of task files"):
        load_suite((tmp_path / "nosuch",))


def test_a_group_of_a_folder_is_named_as_one(workshop: Workshop) -> None:
    workshop.write_yaml()
    (workshop.yaml.parent / "group.yaml").write_text("group: both\ntask: [own_ll, other]\n")
    suite = load_suite((workshop.yaml.parent,))
    for ask in (suite.select, suite.task):
        with pytest.raises(
            UsageError, match=r"^'both': .*group\.yaml:1: a group of tasks, which is not read"
        ):
            ask("both")
    assert suite.select("own_ll")
