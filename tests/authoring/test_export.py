"""Exported tasks under stock lm-eval, without a model: they load, and ask exactly what we ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from cme_bench.authoring.export import export_tasks, stock_config
from cme_bench.harness.yaml_loader import load_yaml
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import render_item
from cme_bench.tasks.build import build_task
from cme_bench.tasks.sources import FolderSource, mini_source
from cme_bench.tasks.suite import load_suite, selectors_of
from cme_bench.util.errors import UsageError
from tests.support.workshop import Workshop

SUITE = load_suite()
TEXTS = {name: spec for name, spec in SUITE.tasks.items() if not spec.config.get("doc_to_image")}
PLAIN = resolve_format("plain", None, generated=False)


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    folder = tmp_path_factory.mktemp("exported")
    files = export_tasks(list(TEXTS.values()), mini_source(), folder)
    assert sorted(folder.iterdir()) == sorted(files)
    return TaskManager(include_path=str(folder), include_defaults=False)


def test_every_task_and_selector_is_there(manager: TaskManager) -> None:
    assert set(manager.all_subtasks) == set(TEXTS)
    assert set(manager.all_tags) == {tag for spec in TEXTS.values() for tag in selectors_of(spec)}
    assert set(manager.load(["nli_ll"])["tasks"]) == {spec.name for spec in SUITE.select("nli_ll")}


@pytest.mark.parametrize(
    "name",
    [
        "cme_anli_r2_ll",  # splits with names of their own
        "cme_arc_easy_ll",
        "cme_mmlu_ll",  # exemplars of one subject
        "cme_mmlu",
        "cme_sciq",  # a split read from another split's file
        "cme_snli",  # a function for its rows
        "cme_squad",
        "cme_tldr",
        "cme_triviaqa",
        "cme_winogrande_ll",  # a context for each choice
    ],
)
@pytest.mark.parametrize("shots", [0, 2])
def test_stock_lm_eval_asks_what_we_ask(manager: TaskManager, name: str, shots: int) -> None:
    ours = build_task(SUITE.tasks[name], SUITE, mini_source(), shots=shots)
    theirs: Any = manager.load([name])["tasks"][name]
    theirs.set_config("num_fewshot", shots)
    theirs.build_all_requests(limit=5)
    expected = [request.args for request in theirs.instances]
    found = [i.args for index in range(5) for i in render_item(ours, index, PLAIN).instances]
    assert found == expected
    assert [doc for _, doc in theirs.doc_iterator(limit=5)] == [ours.docs[i] for i in range(5)]


def test_generated_answers_are_scored_by_our_rules_there_too(manager: TaskManager) -> None:
    task: Any = manager.load(["cme_rte"])["tasks"]["cme_rte"]
    doc = task.eval_docs[0]
    assert task.process_results(doc, ["The answer is yes."]) == {
        "acc": 1.0,
        "f1_macro": [0, 0],
        "answered": 1.0,
    }
    assert task.process_results(doc, ["Hm."]) == {"acc": 0.0, "f1_macro": [0, -1], "answered": 0.0}
    assert set(task.aggregation()) == set(task.higher_is_better()) == {"acc", "f1_macro", "answered"}
    assert task.aggregation()["f1_macro"]([[0, 0], [1, -1]]) == 0.5


ALONE = """
import sys, traceback

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cme_bench":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import lm_eval
from lm_eval.tasks import TaskManager

folder, needing, *names = sys.argv[1:]
manager = TaskManager(include_path=folder, include_defaults=False)
found = lm_eval.simple_evaluate(model="dummy", tasks=names, task_manager=manager, limit=3, bootstrap_iters=0)
print(*sorted(found["results"]))
assert "cme_bench" not in sys.modules
try:
    lm_eval.simple_evaluate(model="dummy", tasks=[needing], task_manager=manager, limit=3, bootstrap_iters=0)
except Exception:
    traceback.print_exc(file=sys.stdout)
"""


@pytest.mark.slow
def test_what_needs_no_import_of_ours_runs_without_it(tmp_path: Path) -> None:
    files = export_tasks(list(TEXTS.values()), mini_source(), tmp_path)
    needing = {file.stem: file.read_text().splitlines()[1] for file in files}
    needing = {name: line for name, line in needing.items() if line.startswith("# cme-bench must be")}
    alone = {file.stem for file in files} - needing.keys()
    assert {"cme_hellaswag_ll", "cme_arc_easy_ll", "cme_winogrande_ll"} <= alone
    assert "read by the rules of cme-bench" in needing["cme_rte"]
    assert "lm-eval has no f1_macro" in needing["cme_rte_ll"]
    assert "exemplars are chosen by a field" in needing["cme_mmlu_ll"]
    command = [sys.executable, "-c", ALONE, str(tmp_path), "cme_rte_ll", *sorted(alone)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}  # datasets asks the hub about files that lie here
    done = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
    *_, evaluated = done.stdout.partition("Traceback")[0].splitlines()
    assert evaluated.split() == sorted(alone), done.stderr
    assert "No module named 'cme_bench'" in done.stdout, done.stdout


def test_splits_that_are_absent_are_left_out(workshop: Workshop) -> None:
    def export() -> dict[str, Any]:
        [spec] = [s for s in load_suite((workshop.yaml,)).tasks.values() if s.path == workshop.yaml]
        return stock_config(spec, FolderSource(workshop.folder / "data"))

    whole = export()
    files = {split: str(workshop.file(split)) for split in ("test", "train")}
    assert whole["dataset_path"] == "json"
    assert whole["dataset_kwargs"] == {"data_files": files}
    assert whole["fewshot_split"] == "train"

    workshop.file("train").unlink()
    without = export()
    assert without["dataset_kwargs"] == {"data_files": {"test": files["test"]}}
    assert "fewshot_split" not in without

    workshop.write_yaml(more="num_fewshot: 2\n")
    with pytest.raises(UsageError, match=r"own/train\.jsonl: no such file"):
        export()
    workshop.write_yaml()
    workshop.file("test").unlink()
    with pytest.raises(UsageError, match=r"own/test\.jsonl: no such file"):
        export()


def test_code_beside_a_task_file_is_not_exported(workshop: Workshop) -> None:
    (workshop.yaml.parent / "own.py").write_text("def f(rows): return rows\n")
    file = workshop.write_yaml(more="process_docs: !function own.f\n")
    spec = load_suite((file,)).task("own_ll")
    with pytest.raises(UsageError, match=rf"{file}:11: !function own\.f lies beside the task file"):
        export_tasks([spec], FolderSource(workshop.folder / "data"), workshop.folder / "out")
    assert not (workshop.folder / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file/out: cannot be written"):
        export_tasks([SUITE.task("cme_rte")], mini_source(), tmp_path / "file" / "out")


def test_a_copy_is_self_contained(tmp_path: Path) -> None:
    [file] = export_tasks([SUITE.task("cme_anli_r1_ll")], mini_source(), tmp_path)
    config = load_yaml(file, root=tmp_path).values
    assert config["tag"] == ["cme_ll", "cme2_ll", "nli_ll"]
    assert "include" not in config
    assert "dataset_name" not in config
    files = config["dataset_kwargs"]["data_files"]
    assert {split: Path(path).name for split, path in files.items()} == {
        "test_r1": "test.jsonl",
        "dev_r1": "validation.jsonl",
    }
    assert all(Path(path).is_absolute() for path in files.values())


def test_a_task_that_shows_images_is_not_exported(workshop: Workshop) -> None:
    workshop.yaml.write_text(workshop.yaml.read_text() + "doc_to_image: image\n")
    suite = load_suite((workshop.yaml,))
    with pytest.raises(UsageError, match=r"own\.yaml:11: task own_ll shows images, which stock lm-eval"):
        stock_config(suite.task("own_ll"), FolderSource(workshop.folder / "data"))
