"""`tasks new`: from raw rows to a task that passes its check and runs, by flags alone or by questions."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest

from cme_bench.authoring.guess import guess
from cme_bench.authoring.table_files import read_table
from cme_bench.cli import main
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import render_item
from cme_bench.runs.store import read_records, samples_file
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.row_files import read_file
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json

PLAIN = resolve_format("plain", None, generated=False)

QUIZ = [
    {"question": "Which planet is red?", "options": ["Mars", "Venus", "Earth"], "answer": "Mars"},
    {"question": "Which is a gas giant?", "options": ["Mars", "Jupiter"], "answer": "Jupiter "},
]
MOODS = 'text,mood\n"So happy, really",glad\n"An awful\nday",sad\nNone,sad\n'
FACTS = [
    {"question": "Who wrote Hamlet?", "answers": ["Shakespeare", "William Shakespeare"]},
    {"question": "What is 2 + 2?", "answers": ["4"]},
]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cme-bench", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def new(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    return command(monkeypatch, "tasks", "new", *arguments)


def jsonl(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def built(folder: Path, name: str, shots: int = 0) -> Task:
    suite = load_suite((folder,))
    return build_task(suite.task(name), suite, mini_source(), shots=shots)


def asked(task: Task) -> list[tuple[str, tuple[str, ...], str]]:
    items = [render_item(task, i, PLAIN) for i in range(len(task.docs))]
    return [(item.contexts[0], item.choices, item.target) for item in items]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Rows in three raw formats, outside the folder of the tasks."""
    folder = tmp_path / "raw"
    folder.mkdir()
    jsonl(folder / "quiz.jsonl", QUIZ)
    (folder / "moods.csv").write_text(MOODS)
    pandas.DataFrame(FACTS).to_parquet(folder / "facts.parquet")
    return folder


def test_three_raw_formats_become_tasks_that_run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raw: Path,
    tmp_path: Path,
    tiny_checkpoint: Path,
) -> None:
    own = tmp_path / "own"
    assert new(monkeypatch, "quiz", "--from", raw / "quiz.jsonl", "-o", own) == 0
    assert new(monkeypatch, "mood", "--from", raw / "moods.csv", "--answer", "mood", "-o", own) == 0
    assert new(monkeypatch, "facts", "--from", raw / "facts.parquet", "-o", own) == 0
    text = capsys.readouterr().out
    assert text.count("1 task checked: 0 errors") == 3
    assert f"cme-bench run smollm2 --tasks facts --include {own}" in text
    files = ["facts.yaml", "facts_test.jsonl", "mood.yaml", "mood_test.jsonl", "quiz.yaml", "quiz_test.jsonl"]
    assert sorted(file.name for file in own.iterdir()) == files

    run = (tiny_checkpoint, "--tasks", "quiz,mood,facts", "--include", own, "--data", "mini")
    assert command(monkeypatch, "run", *run, "--format", "plain", "--out", tmp_path / "run") == 0
    tasks = read_json(tmp_path / "run" / "results.json")["cme"]["tasks"]
    printed = capsys.readouterr().out
    assert all(task["hash"][:8] in printed for task in tasks.values())
    assert {name: (t["form"], t["primary"]) for name, t in tasks.items()} == {
        "quiz": ("other likelihood", "acc"),
        "mood": ("other likelihood", "acc"),
        "facts": ("other generated", "em"),
    }
    records = read_records(samples_file(tmp_path / "run", "quiz"))
    assert {record.id: record.target for record in records} == {0: "Mars", 1: "Jupiter"}


def test_what_they_ask(monkeypatch: pytest.MonkeyPatch, raw: Path, tmp_path: Path) -> None:
    new(monkeypatch, "quiz", "--from", raw / "quiz.jsonl", "-o", tmp_path)
    question = "Choose the right answer to the question.\n\nQuestion: Which is a gas giant?\n\nAnswer:"
    assert asked(built(tmp_path, "quiz"))[1] == (question, (" Mars", " Jupiter"), "Jupiter")

    new(monkeypatch, "letters", "--from", raw / "quiz.jsonl", "--form", "generate", "-o", tmp_path)
    task = built(tmp_path, "letters")
    question = question.replace("\n\nAnswer", "\nA. Mars\nB. Jupiter\n\nAnswer")
    assert asked(task)[1] == (question, (), "B")
    assert task.lm_eval.score_text(task.docs[1], "Jupiter it is").scores["acc"] == 1.0

    new(monkeypatch, "mood", "--from", raw / "moods.csv", "--answer", "mood", "-o", tmp_path)
    first, second, third = asked(built(tmp_path, "mood"))
    start = "Classify the text. Answer with one of: glad, sad.\n\nText: "
    assert first == (f"{start}So happy, really\n\nLabel:", (" glad", " sad"), "glad")
    assert second[0] == f"{start}An awful\nday\n\nLabel:"
    assert third[0] == f"{start}None\n\nLabel:"  # the word, not a missing value
    assert built(tmp_path, "mood").place(2).endswith("mood_test.jsonl:3")

    new(monkeypatch, "facts", "--from", raw / "facts.parquet", "-o", tmp_path)
    task = built(tmp_path, "facts")
    scores = [task.lm_eval.score_text(task.docs[0], text).scores["em"] for text in ("shakespeare", "Marlowe")]
    assert scores == [1.0, 0.0]


@pytest.mark.parametrize(
    ("rows", "arguments", "golds"),
    [
        ([{"question": "?", "A": "x", "B": "y", "answer": "b"}], [], ["y"]),
        ([{"question": "?", "choices": ["x", "y"], "label": 1}], ["--answer-is", "index0"], ["y"]),
        ([{"question": "?", "choices": ["x", "y"], "label": 1}], ["--answer-is", "index1"], ["x"]),
        ([{"question": "?", "choices": ["x", "y"], "label": "2"}], [], ["y"]),
        ([{"question": "?", "choices": ["2", "1"], "answer": "1"}], [], ["1"]),  # the text comes first
        (
            [{"question": "?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"}],
            [],
            ["x"],
        ),
        (
            [{"q": "?", "one": "x", "two": "y", "right": "y"}],
            ["--question", "q", "--choices", "one,two", "--answer", "right"],
            ["y"],
        ),
        (
            [{"text": "a", "label": 1}, {"text": "b", "label": 7}, {"text": "c", "label": 1}],
            ["--labels", "bad,good"],
            ["bad", "good", "bad"],
        ),
        (
            [{"text": "a", "label": True}, {"text": "b", "label": False}],
            ["--labels", "no,yes"],
            ["yes", "no"],
        ),
    ],
)
def test_ways_to_name_the_right_answer(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    rows: list[dict[str, Any]],
    arguments: list[str],
    golds: list[str],
) -> None:
    file = jsonl(tmp_path / "rows.jsonl", rows)
    assert new(monkeypatch, "own", "--from", file, "-o", tmp_path / "own", *arguments) == 0
    assert [target for _, _, target in asked(built(tmp_path / "own", "own"))] == golds


def test_options_of_a_short_csv_row_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,A,B,C,answer\n?,x,y,z,C\n??,x,y,,B\n")
    new(monkeypatch, "own", "--from", file, "-o", tmp_path)
    assert [choices for _, choices, _ in asked(built(tmp_path, "own"))] == [(" x", " y", " z"), (" x", " y")]


def test_several_references_in_one_text_and_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\nWho?,Ann; Ann Lee\nWhere?,Rome\n")
    new(monkeypatch, "qa", "--from", file, "--type", "qa", "--separator", ";", "-o", tmp_path)
    task = built(tmp_path, "qa")
    assert task.lm_eval.score_text(task.docs[0], "ann lee").scores["em"] == 1.0
    sums = jsonl(
        tmp_path / "sums.jsonl", [{"problem": f"{i} + {i}?", "answer": str(2 * i)} for i in range(60)]
    )
    new(monkeypatch, "sums", "--from", sums, "-o", tmp_path)
    task = built(tmp_path, "sums")
    assert task.lm_eval.score_text(task.docs[30], "That makes #### 60").scores["acc"] == 1.0


def test_exemplars_come_from_their_own_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raw: Path
) -> None:
    shots = jsonl(raw / "more.jsonl", [QUIZ[0]])
    new(monkeypatch, "quiz", "--from", raw / "quiz.jsonl", "--shots-from", shots, "-o", tmp_path)
    text = asked(built(tmp_path, "quiz", shots=1))[1][0]
    assert text.count("Choose the right answer") == 2
    assert "Answer: Mars\n\n" in text


def test_on_a_terminal_it_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, raw: Path
) -> None:
    answers = iter(["label", "text", "mood", "Say how it feels."])
    asked_for = []

    def prompt(text: str, default: str = "", **_: object) -> str:
        asked_for.append((text, default))
        return next(answers)

    monkeypatch.setattr("typer.prompt", prompt)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    file = raw / "moods.csv"
    file.write_text("text,mood,label\nfine,glad,1\nawful,sad,0\n")
    assert new(monkeypatch, "mood", "--from", file, "-o", tmp_path) == 0
    assert asked_for[0] == ("Type (choice, label, qa, number, math, summary)", "label")
    assert asked_for[2] == ("Column of the right answer", "label")
    assert asked(built(tmp_path, "mood"))[0][0] == "Say how it feels.\n\nText: fine\n\nLabel:"


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (
            QUIZ,
            ["--answer", "anser"],
            "no column of the answer among question, options, answer; did you mean 'answer'?",
        ),
        (QUIZ, ["--question", "query"], "no column 'query'"),
        (
            QUIZ,
            ["--type", "choise"],
            "unknown type 'choise'; did you mean 'choice'? (one of choice,",
        ),
        (
            QUIZ,
            ["--type", "qa", "--form", "likelihood"],
            "--form likelihood: qa answers are scored as 'generate'",
        ),
        (
            [QUIZ[0] | {"answer": "Pluto"}],
            [],
            "rows.jsonl:1: the answer 'Pluto' is none of the options ['Mars'",
        ),
        (
            [{"text": "a", "label": 1}, {"text": "b", "label": 0}],
            [],
            "name the labels 0, 1 in this order with --labels",
        ),
        (
            [{"text": "a", "label": "x"}, {"text": "b", "label": None}],
            [],
            "rows.jsonl:2: label None is no label",
        ),
        (
            [{"question": "?", "choices": ["x", "y"], "label": 1}],
            [],
            "label 1 can be read as option 2 (index0) or 1 (index1), in every row; say --answer-is index0 or",
        ),
        (
            [{"question": "a", "reply": "x"}],
            [],
            "no column of the answer among question, reply; name it with --answer",
        ),
    ],
)
def test_what_cannot_become_a_task_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    rows: list[dict[str, Any]],
    arguments: list[str],
    message: str,
) -> None:
    file = jsonl(tmp_path / "rows.jsonl", rows)
    assert new(monkeypatch, "own", "--from", file, "-o", tmp_path / "own", *arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "own").exists()


def test_names_files_and_what_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, raw: Path
) -> None:
    for name, source, message in [
        ("../x", raw / "quiz.jsonl", "task name '../x' is no plain name"),
        ("cme_rte", raw / "quiz.jsonl", "a task 'cme_rte' is built in"),
        ("x", raw / "nosuch.csv", "nosuch.csv: no such file"),
        ("x", raw / "moods.xls", "moods.xls: no such file"),
    ]:
        assert new(monkeypatch, name, "--from", source, "-o", tmp_path) == 2
        assert message in capsys.readouterr().err
    (raw / "moods.xls").touch()
    assert new(monkeypatch, "x", "--from", raw / "moods.xls", "-o", tmp_path) == 2
    assert "rows are read from .jsonl, .ndjson, .json, .csv, .tsv, .parquet" in capsys.readouterr().err
    assert new(monkeypatch, "x", "--from", raw / "quiz.jsonl", "-o", tmp_path) == 0
    assert new(monkeypatch, "x", "--from", raw / "quiz.jsonl", "-o", tmp_path) == 2
    assert "x.yaml: is there already (--force replaces it)" in capsys.readouterr().err
    assert new(monkeypatch, "x", "--from", raw / "quiz.jsonl", "-o", tmp_path, "--force") == 0


def test_a_dataset_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, raw: Path
) -> None:
    monkeypatch.setattr(
        "cme_bench.tasks.hub.HubSource.rows", lambda self, spec, split: read_file(raw / "quiz.jsonl")
    )
    monkeypatch.setattr("cme_bench.tasks.hub.HubSource.revision", lambda self, spec: "a" * 40)
    assert new(monkeypatch, "quiz", "--from", "hub:acme/quiz:easy", "--split", "dev", "-o", tmp_path) == 0
    spec = load_suite((tmp_path,)).task("quiz")
    assert spec.metadata["note"] == f"rows of acme/quiz (easy), split dev, commit {'a' * 40}"
    assert [target for _, _, target in asked(built(tmp_path, "quiz"))] == ["Mars", "Jupiter"]


def test_summaries_are_guessed_by_their_length(tmp_path: Path) -> None:
    rows = [{"document": f"text {i}", "summary": f"{i} " + "word " * 15} for i in range(5)]
    draft = guess(read_table(jsonl(tmp_path / "rows.jsonl", rows)))
    assert (draft.kind, draft.question, draft.answer) == ("summary", ("document",), "summary")
    with pytest.raises(UsageError, match="name it with --answer"):
        guess(read_table(jsonl(tmp_path / "rows.jsonl", [{"document": "text"}])))


@pytest.mark.parametrize("flags", [(), ("--form", "generate")])
def test_dates_stay_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """lm-eval reads a JSON column of dates as times of a day."""
    days = ["1914-07-28", "1939-09-01", "1945-05-08"]
    rows = [{"question": f"When was {i}?", "options": days, "answer": days[i % 3]} for i in range(4)]
    file = jsonl(tmp_path / "rows.jsonl", rows)
    assert new(monkeypatch, "when", "--from", file, "-o", tmp_path / "out", *flags) == 0
    [_, (prompt, choices, right), *_] = asked(built(tmp_path / "out", "when"))
    assert "00:00" not in prompt
    if flags:
        assert "B. 1939-09-01" in prompt
        assert right.strip() == "B"
    else:
        assert [choice.strip() for choice in choices] == days
        assert right.strip() == days[1]
