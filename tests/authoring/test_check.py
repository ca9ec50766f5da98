"""`tasks check`: broken files and rows, each by one line that names file and line; what else it looks at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.command import called

GOOD = {
    "own.yaml": """\
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: own.jsonl, train: shots.jsonl}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "Q: {{ question }}\\nA:"
doc_to_choice: ["no", "yes"]
doc_to_target: label
metadata: {dataset: own}
""",
    "own.jsonl": '{"question": "a?", "label": 0}\n{"question": "b?", "label": 1}\n',
    "shots.jsonl": '{"question": "c?", "label": 1}\n',
}


def write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


def check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, list[str]]:
    """Exit code and lines of ``cme-bench tasks check ARGUMENTS``."""
    code, out, err = called(monkeypatch, capsys, "tasks", "check", *arguments)
    return code, [*out.splitlines(), *err.splitlines()]


def test_a_good_task_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    write(tmp_path, GOOD)
    code, lines = check(monkeypatch, capsys, tmp_path, "--model", tiny_checkpoint)
    assert code == 0
    assert lines == [
        "ok: own: 1 exemplars, 2 items, every prompt begins with '<s>' (llama models are trained with it), "
        "prompts of 8 to 9 tokens (median 8, plain)",
        "1 task checked: 0 errors, 0 warnings",
    ]


def swap(old: str, new: str, file: str = "own.yaml") -> dict[str, str | bytes]:
    assert old in GOOD[file]
    return {file: GOOD[file].replace(old, new)}


BROKEN: dict[str, tuple[dict[str, str | bytes], str]] = {
    "no YAML": (
        swap("test_split: test", "test_split: [test"),
        "own.yaml:5: did not find expected ',' or ']'",
    ),
    "a tab": (
        swap("output_type:", "\toutput_type:"),
        "own.yaml:6: found a tab character that violates indentation",
    ),
    "a list": ({"own.yaml": "- task: own\n"}, "own.yaml:1: a task file is a mapping of keys to values"),
    "not UTF-8": ({"own.yaml": b"task: own\xff\n"}, "own.yaml: cannot be read ("),
    "a key twice": (
        swap("doc_to_target: label", "doc_to_target: label\ntask: x"),
        "own.yaml:10: 'task' stands twice",
    ),
    "an unknown key": (
        swap("doc_to_text", "doc_to_txt"),
        "own.yaml:7: unknown key 'doc_to_txt'; did you mean 'doc_to_text'?",
    ),
    "an unknown key of the metadata": (
        swap("{dataset: own}", "{datset: own}"),
        "own.yaml:10: unknown key 'metadata.datset'; did you mean 'dataset'?",
    ),
    "a Python object": (
        swap("label\n", "!!python/object/apply:os.system [x]\n"),
        "own.yaml:9: could not determine a constructor",
    ),
    "an unknown output type": (
        swap("multiple_choice", "multiple_choise"),
        "own.yaml:6: output_type 'multiple_choise' is none of",
    ),
    "no split": (swap("test_split: test\n", ""), "own.yaml:1: no test_split and no validation_split"),
    "no target": (swap("doc_to_target: label\n", ""), "own.yaml:1: no 'doc_to_target'"),
    "yes without quotes": (
        swap('["no", "yes"]', "[no, yes]"),
        "own.yaml:8: choice False is no text: quote it (YAML reads yes as true)",
    ),
    "shots that are no number": (
        swap("metadata:", "num_fewshot: many\nmetadata:"),
        "own.yaml:10: 'num_fewshot' must be a whole number of 0 or more, not 'many'",
    ),
    "a name that leads elsewhere": (
        swap("task: own", "task: ../own"),
        "own.yaml:1: task name '../own' is no plain name",
    ),
    "a picture": (
        swap("metadata:", "doc_to_audio: [sound]\nmetadata:"),
        "own.yaml:10: doc_to_audio: sound is not played to a model here",
    ),
    "an unknown metric": (
        swap("metadata:", "metric_list: [{metric: accuracy}]\nmetadata:"),
        "own.yaml:10: unknown metric 'accuracy'",
    ),
    "a primary metric that is not measured": (
        swap("{dataset: own}", "{dataset: own, primary: f1}"),
        "own.yaml:10: primary metric 'f1' is none of acc, acc_char",
    ),
    "a cluster that is no column": (
        swap("{dataset: own}", "{dataset: own, cluster: passage}"),
        "own.yaml:10: cluster 'passage' is no column (there are question, label)",
    ),
    "code": (
        swap("metadata:", "process_docs: !function os.system\nmetadata:"),
        "own.yaml:10: !function os.system is Python code; it runs only with --allow-code",
    ),
    "a template that is none": (swap("{{ question }}", "{{ question"), "own.jsonl:1: task own ("),
    "no rows file": (swap("own.jsonl", "other.jsonl"), "own.yaml:3: {folder}/other.jsonl: no such file"),
    "rows outside the folder": (
        swap("own.jsonl", "../own.jsonl"),
        "own.yaml:3: ../own.jsonl leads out of {folder}, so it is not read",
    ),
    "a split without a file": (
        swap("{test: own.jsonl", "{dev: own.jsonl"),
        "own.yaml:3: no data file for split 'test'",
    ),
    "no JSON": (swap('"label": 1}', '"label": 1', "own.jsonl"), "own.jsonl:2: not a JSON object ("),
    "a row that is a list": ({"own.jsonl": "[1, 2]\n"}, "own.jsonl:1: not a JSON object but a list"),
    "a row without a key": (
        {"own.jsonl": GOOD["own.jsonl"] + '{"question": "x?"}\n'},
        "own.jsonl:3: task own: label None is out of range: there are 2 choices",
    ),
    "types that differ": (
        {"own.jsonl": GOOD["own.jsonl"] + '{"question": "x?", "label": "yes"}\n'},
        "own.jsonl:3: types differ between rows (label is a text, but a number in line 1)",
    ),
    "a label out of range": (
        swap('"label": 1', '"label": 2', "own.jsonl"),
        "own.jsonl:2: task own: label 2 is out of range: there are 2 choices",
    ),
    "no rows": ({"own.jsonl": "\n"}, "own.jsonl: holds no rows"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_one_line_with_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    changed, message = BROKEN[name]
    write(tmp_path, {**GOOD, **changed})
    code, lines = check(monkeypatch, capsys, tmp_path, "--offline")
    assert code == 2
    [error] = [line for line in lines if line.startswith("error: ")]
    assert error.startswith(f"error: {tmp_path}/{message.format(folder=tmp_path)}")
    assert lines[-1].endswith("checked: 1 errors, 0 warnings")


def test_there_are_more_than_twenty() -> None:
    assert len(BROKEN) >= 20


def test_one_broken_file_does_not_hide_the_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write(tmp_path, {**GOOD, "a.yaml": "task: a\ntest_split: 1\n", "b.yaml": GOOD["own.yaml"]})
    code, lines = check(monkeypatch, capsys, tmp_path)
    assert code == 2
    assert lines[0].startswith(f"error: {tmp_path}/a.yaml:2: 'test_split' must be a text")
    assert lines[1] == f"error: {tmp_path}/own.yaml:1: task 'own' is already defined in {tmp_path}/b.yaml"
    assert lines[-1] == "1 task checked: 2 errors, 0 warnings"


ROWS = [
    {"id": "x", "question": "a?", "label": 0},
    {"id": "y", "question": "b?", "label": 0},
    {"id": "x", "question": "a?", "label": 0},
]


def test_warnings_are_repeats_exemplars_that_are_scored_and_one_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    shots = "".join(json.dumps(ROWS[i] | {"id": "z"}) + "\n" for i in (1,))
    write(tmp_path, {**GOOD, "own.jsonl": text, "shots.jsonl": shots})
    code, lines = check(monkeypatch, capsys, tmp_path)
    rows = f"{tmp_path}/own.jsonl"
    assert code == 0
    assert lines[:-2] == [
        f"warning: {rows}: the answer is 'no' in all 3 items",
        f"warning: {rows}:3: the same question stands in {rows}:1",
        f"warning: {rows}:3: id 'x' stands in {rows}:1 too",
        f"warning: {tmp_path}/shots.jsonl:1: this exemplar is also scored, in {rows}:2",
    ]


LACKING = """\
task: rows
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
doc_to_text: "Q: {{ q }}\\nContext: {{ c }}"
metadata: {primary: PRIMARY}
"""
CHOSEN = (
    LACKING.replace("PRIMARY", "acc") + "output_type: multiple_choice\ndoc_to_choice: o\ndoc_to_target: a\n"
)
WRITTEN = LACKING.replace("PRIMARY", "em") + (
    "output_type: generate_until\ndoc_to_target: a\ngeneration_kwargs: {until: [',', ';']}\n"
)


@pytest.mark.parametrize(
    ("yaml", "odd", "expected"),
    [
        (WRITTEN, {"a": None}, "error: {}: there is no right answer: a is null"),
        (
            WRITTEN,
            {"a": "Paris, France"},
            "warning: {}: the right answer holds ',', where answers are stopped",
        ),
        (WRITTEN, {"q": " ", "c": None}, "warning: {}: nothing is asked: q, c is empty"),
        (WRITTEN, {"c": None}, "warning: {}: c is null, and shown as the word None"),
        (CHOSEN, {"o": ["x"], "a": 0}, "warning: {}: there is one choice, which is always right"),
        (CHOSEN, {"o": ["x", None]}, "error: {}: task rows: option 2 is null"),
        (CHOSEN, {"o": ["y ", "y"]}, "error: {}: the right choice 'y' stands there twice"),
    ],
)
def test_what_a_row_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    yaml: str,
    odd: dict[str, object],
    expected: str,
) -> None:
    good = {"q": "Who?", "c": "None of these", "a": "Ann"} if yaml is WRITTEN else {"q": "Who?", "c": "So."}
    rows = [good | ({"o": ["x", "y"], "a": 1} if yaml is CHOSEN else {}) | {"q": text} for text in ("a", "b")]
    if yaml is CHOSEN:
        rows.append(rows[0] | {"q": "c", "a": 0})
    rows.append(rows[0] | {"q": "d"} | odd)
    write(tmp_path, {"rows.yaml": yaml, "rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    _, lines = check(monkeypatch, capsys, tmp_path)
    findings = [line for line in lines if line.startswith(("error", "warning"))]
    assert findings == [expected.format(tmp_path / f"rows.jsonl:{len(rows)}")]


def test_options_that_are_one_text_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = '{"q": "a", "c": "b", "o": "[\'x\', \'y\']", "a": 1}\n'
    write(tmp_path, {"rows.yaml": CHOSEN, "rows.jsonl": rows})
    code, lines = check(monkeypatch, capsys, tmp_path)
    assert code == 2
    assert any("doc_to_choice gives the text" in line and "rows.jsonl:1" in line for line in lines)


def test_of_many_bad_rows_the_first_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = "".join(f'{{"question": "{i}?", "label": {9 if i else 0}}}\n' for i in range(9))
    write(tmp_path, {**GOOD, "own.jsonl": rows})
    code, lines = check(monkeypatch, capsys, tmp_path)
    errors = [line for line in lines if line.startswith("error")]
    assert code == 2
    assert [line.partition(": task")[0] for line in errors[:5]] == [
        f"error: {tmp_path}/own.jsonl:{number}" for number in range(2, 7)
    ]
    assert errors[5:] == [f"error: {tmp_path}/own.yaml: and 3 more rows like that"]


def test_prompts_that_do_not_fit_a_model_are_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_model: object,
    toy_tokenizer: object,
) -> None:
    model = tmp_path / "model"
    tiny_model.save_pretrained(model)  # type: ignore[attr-defined]
    toy_tokenizer.save_pretrained(model)  # type: ignore[attr-defined]
    folder = tmp_path / "tasks"
    write(folder, {**GOOD, "own.jsonl": GOOD["own.jsonl"].replace("b?", "b" * 99)})
    code, lines = check(monkeypatch, capsys, folder, "--model", model)
    assert code == 0
    assert lines[0].startswith(f"warning: {folder}/own.jsonl:2: ")
    assert lines[0].endswith(" tokens are cut from the left to fit 64")


def test_missing_exemplars_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write(tmp_path, GOOD)
    (tmp_path / "shots.jsonl").unlink()
    code, lines = check(monkeypatch, capsys, tmp_path / "own.yaml")
    assert code == 0
    assert lines[0] == (
        f"warning: {tmp_path}/own.yaml:3: {tmp_path}/shots.jsonl: no such file (so --shots cannot be used)"
    )


def test_a_path_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, lines = check(monkeypatch, capsys, tmp_path / "nosuch")
    assert (code, lines) == (2, [f"cme-bench: {tmp_path}/nosuch: no such file or folder"])
    code, lines = check(monkeypatch, capsys, tmp_path)
    assert (code, lines[0]) == (2, f"error: {tmp_path}: holds no task file (.yaml)")


@pytest.mark.parametrize("metrics", ["", "metric_list: [{metric: bleu}]\n"])
def test_a_generated_task_needs_to_name_no_metric(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, metrics: str
) -> None:
    own = GOOD["own.yaml"].replace('doc_to_choice: ["no", "yes"]\n', "")
    own = own.replace("multiple_choice", "generate_until").replace("doc_to_target: label", "doc_to_target: a")
    rows = '{"question": "a?", "a": "x"}\n{"question": "b?", "a": "y"}\n'
    write(tmp_path, GOOD | {"own.yaml": own + metrics, "own.jsonl": rows, "shots.jsonl": rows[:28] + "\n"})
    code, lines = check(monkeypatch, capsys, tmp_path)
    assert code == 0, lines
