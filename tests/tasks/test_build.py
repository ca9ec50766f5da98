"""From a file and rows to a task: what is refused, where, and what the hash covers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import render_item
from cme_bench.tasks.build import Task
from cme_bench.util.errors import UsageError
from tests.support.workshop import Workshop

PLAIN = resolve_format("plain", None, generated=False)


def prompts(task: Task, seed: int = 0) -> list[str]:
    return [render_item(task, i, PLAIN, seed).contexts[0] for i in range(len(task.docs))]


def test_rows_keep_their_order_and_their_lines(workshop: Workshop) -> None:
    file = workshop.write_rows("test", [{"question": "a", "label": 0}, "", {"question": "b", "label": 1}])
    task = workshop.build()
    assert prompts(task) == ["Q: a\nA:", "Q: b\nA:"]
    assert [task.place(i) for i in range(2)] == [f"{file}:1", f"{file}:3"]


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        (['{"question": "a", "label": 0'], 1, "not a JSON object ("),
        ([{"question": "a", "label": 0}, "[1]"], 2, "not a JSON object but a list"),
        ([{"question": "a", "label": 0}, {"question": "b"}], 2, "task own_ll: label None is out of range"),
        ([{"question": "a", "label": 0}, {"question": "b", "label": "x"}], 2, "types differ between rows"),
        ([{"question": "a", "label": 7}], 1, "task own_ll ("),
        ([{"question": "a"}], 1, "task own_ll: label 'label' is out of range"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_with_its_line(
    workshop: Workshop, rows: list[object], line: int, message: str
) -> None:
    file = workshop.write_rows("test", rows)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        prompts(workshop.build())
    assert str(caught.value).startswith(f"{file}:{line}: {message}")
    assert "\n" not in str(caught.value)


def test_a_label_out_of_range_is_named_with_its_line(workshop: Workshop) -> None:
    for label in (2, -1):
        file = workshop.write_rows("test", [{"question": "a", "label": 0}, {"question": "b", "label": label}])
        with pytest.raises(UsageError) as caught:
            prompts(workshop.build())
        expected = f"{file}:2: task own_ll: label {label} is out of range: there are 2 choices"
        assert str(caught.value) == expected
    file = workshop.write_rows("test", [{"question": "a", "label": 2}])
    with pytest.raises(UsageError, match=r"test\.jsonl:1: .* label 2 is out of range: there are 2 choices"):
        workshop.build()


def test_a_template_that_fails_on_one_row_names_the_row(workshop: Workshop) -> None:
    workshop.yaml.write_text(workshop.yaml.read_text().replace("{{ question }}", "{{ question[0] / 2 }}"))
    file = workshop.write_rows("test", [{"question": [4], "label": 0}, {"question": [], "label": 1}])
    with pytest.raises(UsageError) as caught:
        prompts(workshop.build())
    assert str(caught.value).startswith(f"{file}:2: task own_ll: ")


def test_missing_and_empty_splits_are_named(workshop: Workshop) -> None:
    workshop.file("train").unlink()
    assert workshop.build().shots == 0
    with pytest.raises(
        UsageError, match=r"own/train\.jsonl: no such file \(task own_ll needs split 'train'\)"
    ):
        workshop.build(shots=1)
    workshop.write_rows("test", [])
    with pytest.raises(UsageError, match=r"own/test\.jsonl: holds no rows"):
        workshop.build()
    workshop.yaml.write_text(workshop.yaml.read_text().replace("fewshot_split: train\n", ""))
    workshop.write_rows("test", [{"question": "a", "label": 0}])
    with pytest.raises(UsageError, match="2 shots asked for, but the task names no fewshot_split"):
        workshop.build(shots=2)


def test_a_file_may_be_named_unlike_its_split(workshop: Workshop) -> None:
    workshop.file("test").rename(workshop.file("part"))
    workshop.write_yaml(more="  folder: own\n  splits: {test: part}\n")
    assert len(workshop.build().docs) == 4


CODE = "from pathlib import Path\nPath({mark!r}).touch()\ndef f(rows):\n    return rows.select([1])\n"


def test_python_of_an_untrusted_folder_is_neither_run_nor_imported(workshop: Workshop) -> None:
    mark = workshop.folder / "imported"
    (workshop.yaml.parent / "own.py").write_text(CODE.format(mark=str(mark)))
    file = workshop.write_yaml(more="process_docs: !function own.f\n")
    with pytest.raises(UsageError) as caught:
        workshop.build()
    expected = f"{file}:11: !function own.f is Python code; it runs only with --allow-code"
    assert str(caught.value) == expected
    assert not mark.exists()
    assert prompts(workshop.build(allow_code=True)) == ["Q: test 1?\nA:"]
    assert mark.exists()


def test_an_installed_function_needs_allow_code_too_unless_it_is_one_of_ours(workshop: Workshop) -> None:
    workshop.write_yaml(more="process_docs: !function os.system\n")
    with pytest.raises(UsageError, match=r"!function os\.system is Python code"):
        workshop.build()
    ours = "process_docs: !function cme_bench.tasks.docs.drop_unlabelled\n"
    workshop.write_yaml(more=ours)
    workshop.write_rows("test", [{"question": str(i), "label": i} for i in (1, -1, 0)])
    task = workshop.build()
    assert prompts(task) == ["Q: 1\nA:", "Q: 0\nA:"]
    assert task.place(1).endswith("test.jsonl (row 1 after filtering)")

    shadow = workshop.yaml.parent / "cme_bench" / "tasks"
    shadow.mkdir(parents=True)
    (shadow / "docs.py").write_text("def drop_unlabelled(rows): return rows")
    with pytest.raises(UsageError, match="is Python code"):
        workshop.build()


def test_a_function_that_does_not_exist_is_named(workshop: Workshop) -> None:
    file = workshop.write_yaml(more="process_docs: !function os.nosuch\n")
    with pytest.raises(UsageError, match=rf"{file}:11: !function os.nosuch cannot be imported"):
        workshop.build(allow_code=True)


def test_the_hash_covers_what_decides_scores(workshop: Workshop) -> None:
    first = workshop.build().hash
    assert workshop.build().hash == first
    assert workshop.build(shots=1).hash != first
    assert workshop.build(shots=2).hash != workshop.build(shots=1).hash

    workshop.write_yaml(more="  licence: another\n  note: prose\n")
    assert workshop.build().hash == first
    workshop.write_yaml()
    workshop.yaml.write_text(workshop.yaml.read_text().replace("A:", "A :"))
    assert workshop.build().hash != first
    workshop.write_yaml()

    rows = [{"question": f"test {i}?", "label": i % 2} for i in range(4)]
    workshop.write_rows("test", [*rows[:3], rows[3] | {"question": "test 3!"}])
    assert workshop.build().hash != first
    workshop.write_rows("test", [{"label": r["label"], "question": r["question"]} for r in rows])
    assert workshop.build().hash == first  # the order of keys says nothing

    with_shot = workshop.build(shots=1).hash
    workshop.write_rows("train", [{"question": "another", "label": 1}])
    assert workshop.build(shots=1).hash != with_shot


def test_the_hash_covers_code_beside_the_task_file(workshop: Workshop) -> None:
    code = workshop.yaml.parent / "own.py"
    code.write_text("def f(rows): return rows\n")
    workshop.write_yaml(more="process_docs: !function own.f\n")
    first = workshop.build(allow_code=True).hash
    code.write_text("def f(rows): return rows.select([0])\n")
    assert workshop.build(allow_code=True).hash != first


def test_the_hash_is_the_same_wherever_the_files_lie(workshop: Workshop, tmp_path: Path) -> None:
    workshop.write_yaml(more="process_docs: !function cme_bench.tasks.docs.drop_unlabelled\n")
    other = Workshop(tmp_path / "other")
    shutil.copytree(workshop.folder / "data", other.folder / "data")
    other.write_yaml(
        more="# moved down a line\nprocess_docs: !function cme_bench.tasks.docs.drop_unlabelled\n"
    )
    assert other.build().hash == workshop.build().hash


def test_exemplars_depend_on_seed_and_item_only(workshop: Workshop) -> None:
    workshop.write_rows("train", [{"question": f"shot {i}?", "label": i % 2} for i in range(40)])
    task = workshop.build(shots=2)
    whole = prompts(task)
    assert whole[0].count("\nA: ") == 2
    assert render_item(task, 3, PLAIN).contexts[0] == whole[3]  # whatever was rendered before
    assert prompts(workshop.build(shots=2)) == whole
    assert len({prompt.rpartition("Q: test")[0] for prompt in whole}) > 1
    assert prompts(task, seed=1) != whole


def test_more_exemplars_than_there_are_is_one_line(workshop: Workshop) -> None:
    with pytest.raises(UsageError, match=r"train\.jsonl: 7 shots asked for, 6 exemplars there"):
        prompts(workshop.build(shots=7))


def test_exemplars_of_a_group_come_from_that_group(workshop: Workshop) -> None:
    rows = [{"question": f"{group} {i}", "label": 0, "group": group} for i in range(3) for group in "ab"]
    workshop.write_rows("train", rows)
    workshop.write_rows("test", [{"question": "?", "label": 0, "group": group} for group in "abc"])
    workshop.write_yaml(more="  fewshot_group: group\nfewshot_config: {sampler: first_n}\n")
    task = workshop.build(shots=2)
    assert render_item(task, 0, PLAIN).contexts[0] == "Q: a 0\nA: no\n\nQ: a 1\nA: no\n\nQ: ?\nA:"
    assert render_item(task, 1, PLAIN).contexts[0] == "Q: b 0\nA: no\n\nQ: b 1\nA: no\n\nQ: ?\nA:"
    with pytest.raises(UsageError, match=r"test\.jsonl:3: task own_ll: .*exceeds the 0"):
        render_item(task, 2, PLAIN)
