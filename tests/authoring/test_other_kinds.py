"""Columns that look like one kind and may be another, and options and files in unusual dress."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cme_bench.authoring.draft import Draft
from cme_bench.authoring.guess import guess
from cme_bench.authoring.new_options import Told
from cme_bench.authoring.table_files import Table, read_table
from cme_bench.authoring.verify import verified
from cme_bench.authoring.write import new_task
from cme_bench.util.errors import UsageError
from tests.support.command import called

N = 12


def table(*rows: dict[str, Any]) -> Table:
    return Table(rows, "rows", list(range(1, len(rows) + 1)))


def asked(values: Sequence[Any], answer: str = "answer") -> Table:
    return table(*({"question": f"What is number {i}?", answer: value} for i, value in enumerate(values)))


def golds(draft: Draft) -> list[str]:
    return [options[gold].text for options, gold in zip(draft.options, draft.golds, strict=True)]


OPEN: dict[str, tuple[Table, str]] = {
    "letters of options that are nowhere": (asked("ABCD" * 3), "the answers are letters (A, B, C, D)"),
    "letters in brackets": (asked(["(A)", "(B)"] * 6), "the answers are letters ((A), (B))"),
    "numbers of thousands, or decimals": (asked([f"{i}.250" for i in range(1, N)]), "say --decimal comma or"),
    "wrong options in other spellings": (
        table(
            *({"Question": f"Q {i}?", "Correct Answer": f"a{i}", "Incorrect Answer 1": "b"} for i in range(N))
        ),
        "Incorrect Answer 1 hold wrong options",
    ),
    "long answers to questions": (
        asked([f"It is {i} " + "and so on " * 9 for i in range(N)]),
        "30 words in the",
    ),
    "lists of long answers": (
        asked([["It is so " * 9, "and so on " * 9]] * N, "answers"),
        "say --type summary",
    ),
    "answers as long as the text": (
        table(*({"text": f"{i} " + "a b c " * 9, "output": f"{i} " + "a b c " * 8} for i in range(N))),
        "output has 25 words in the mean",
    ),
    "summaries of several sentences": (
        table(*({"article": f"{i} " + "a b " * 30, "summary": [f"It {i}.", "So."]} for i in range(N))),
        "summary are lists of texts",
    ),
    "labels that are written as lists": (asked(["['a']", "['b']"] * 6, "label"), "is written as a list"),
    "rows with a passage and no question": (
        table(*({"passage": f"P {i}", "question": "Who?" * (i % 2), "answer": f"x{i}"} for i in range(N))),
        "there is no question in question",
    ),
    "options that are called answers": (
        asked(
            [[{"marker": "A", "text": f"a{i}"}, {"marker": "B", "text": "b"}] for i in range(N)], "answers"
        ),
        "'marker' seems to name options; say --choices",
    ),
    "options that are called answers beside the right ones": (
        table(*({"question": f"Q {i}?", "answers": ["a", "b"], "correct_answers": ["a"]} for i in range(N))),
        "answers and correct_answers could each be the answer",
    ),
    "letters that each stand in a list": (asked([["A"], ["B"]] * 6), "the answers are letters (A, B)"),
    "the target of a stance": (
        table(*({"tweet": f"I like {i}", "target": "ab"[i % 2], "stance": "xy"[i % 2]} for i in range(N))),
        "target and stance could each be the answer",
    ),
    "what a sentence is asked about": (
        table(*({"sentence": f"It is {i}", "aspect": "abc"[i % 3], "label": "xy"[i % 2]} for i in range(N))),
        "(aspect may or may not be part of the question)",
    ),
    "labels in few rows": (
        asked(["pos", "neg", "neu", "pos"], "label"),
        "label has 3 different values in 4 rows; say --type label to ask for one of them, or --type qa",
    ),
    "integers as labels in few rows": (asked([0, -1, 1], "label"), "--type label to ask for one of them, or"),
    "labels that join others": (asked(["a", "b"] * 5 + ["a, b"], "label"), "label 'a, b' joins other labels"),
    "labels that each stand in a list": (
        asked([["a"], ["b"]] * 6, "labels"),
        "every labels is a list of one",
    ),
    "one label": (asked(["a"] * N, "label"), "label is 'a' in every row"),
    "answers parted by slashes": (
        asked([f"colour {i} / color {i}" for i in range(N)]),
        "say --separator ' / ' (each part is accepted)",
    ),
    "answers parted by a word": (
        asked([f"colour {i} or color {i}" for i in range(N)]),
        "say --separator ' or ' (each part is accepted)",
    ),
    "answers parted by lines": (asked([f"a{i}\nb{i}" for i in range(N)]), r"say --separator $'\n' (each"),
    "lists written in a column of several answers": (
        asked([json.dumps([f"a{i}", f"b{i}"]) for i in range(N)], "answers"),
        "every answers is written as a list or mapping",
    ),
    "the names of labels beside them": (
        table(*({"text": f"It is {i}", "label": i % 2, "label_text": "ny"[i % 2]} for i in range(N))),
        "name the labels 0, 1 in this order with --labels",
    ),
}


@pytest.mark.parametrize("name", OPEN)
def test_what_may_be_another_kind_is_refused(name: str) -> None:
    rows, message = OPEN[name]
    with pytest.raises(UsageError) as caught:
        guess(rows)
    [line] = str(caught.value).splitlines()
    assert message in line


KINDS: dict[str, tuple[Table, Told, str]] = {
    "letters as labels": (asked("ABCD" * 3, "label"), Told(), "label"),
    "letters that a flag calls labels": (asked("ABCD" * 3), Told(kind="label"), "label"),
    "other letters": (asked("mf" * 6), Told(), "label"),
    "labels with a slash of their own": (asked(["n/a", "b", "c"] * 4, "label"), Told(), "label"),
    "a joined label that a flag keeps": (
        asked(["a", "b"] * 5 + ["a, b"], "label"),
        Told(kind="label"),
        "label",
    ),
    "a completion of a long prompt": (
        table(*({"prompt": f"{i} " + "a b c " * 30, "completion": f"{i} " + "a b c " * 6} for i in range(N))),
        Told(),
        "summary",
    ),
    "fractions": (asked([f"{i}/7" for i in range(N)]), Told(), "number"),
    "some answers with or": (asked([f"c{i}" if i % 2 else f"a{i} or b{i}" for i in range(N)]), Told(), "qa"),
    "a written list is one answer": (asked(["[1, 2]", "['a', 'b']", "[3]"]), Told(kind="qa"), "qa"),
    "lists of accepted answers": (asked([[f"a{i}"] for i in range(N)], "answers"), Told(), "qa"),
    "one label in few rows": (asked(["a"] * 3, "label"), Told(), "label"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_plain_is_guessed(name: str) -> None:
    rows, told, kind = KINDS[name]
    assert guess(rows, told).kind == kind


def chosen(options: Sequence[Any], answer: Any) -> Table:
    return table({"question": "Which?", "options": list(options), "answer": answer})


@pytest.mark.parametrize(
    ("rows", "texts", "right"),
    [
        (chosen(["B) x", "A) y"], "A"), ["x", "y"], "y"),
        (chosen(["2. x", "1. y", "3. z"], "2"), ["x", "y", "z"], "x"),
        (chosen(["A) x", "B) y"], "B"), ["x", "y"], "y"),
        (chosen(["A. Einstein", "I. Newton"], "A. Einstein"), ["A. Einstein", "I. Newton"], "A. Einstein"),
        (chosen(["B. Pascal", "E. Noether"], "B"), ["B. Pascal", "E. Noether"], "E. Noether"),
        (chosen(["True", "False"], False), ["True", "False"], "False"),
        (chosen(["FALSE", "TRUE"], True), ["FALSE", "TRUE"], "TRUE"),
    ],
)
def test_options_in_unusual_dress(rows: Table, texts: list[str], right: str) -> None:
    draft = guess(rows)
    assert [option.text for option in draft.options[0]] == texts
    assert golds(draft) == [right]


def test_a_boolean_is_no_yes() -> None:
    with pytest.raises(UsageError, match="the answer True is none of the options"):
        guess(chosen(["yes", "no"], True))


def written(file: Path, content: str) -> Path:
    file.write_text(content, encoding="utf-8")
    return file


def test_a_table_of_markdown_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.csv", "| question | answer |\n|:---|---|\n| Who? | Ann |\n")
    with pytest.raises(UsageError, match=r"rows.csv:2: holds a table of Markdown"):
        read_table(file)
    file = written(tmp_path / "rows.csv", "question|answer\n---|Ann\n---|Bo\n")
    assert read_table(file).values("answer") == ["Ann", "Bo"]


@pytest.mark.parametrize(
    ("text", "warned"),
    [("KÃ¶ln", True), ("itâ€™s", True), ("Köln", False), ("São Paulo", False), ("Ã la", False), ("€", False)],
)
def test_texts_that_were_encoded_twice_are_named(tmp_path: Path, text: str, warned: bool) -> None:
    rows = read_table(written(tmp_path / "rows.jsonl", json.dumps({"question": "?", "answer": text}) + "\n"))
    assert any("look encoded twice" in note for note in rows.notes) is warned


TASK = """\
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: own.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "Q: {{ question }}\\nA:"
doc_to_target: answer
generation_kwargs: {until: ["\\n\\n"]}
metadata: {dataset: own, answer: {type: short}}
"""


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("one line\nanother", "one line"),
        ("Yes. It is.", "Yes."),
        ("The answer is blowing in the wind", "blowing in the wind"),
        ("Dr. No", None),
        ("The Answer", None),
        ("C++", None),
        (["two\nlines", "two"], None),
    ],
)
def test_a_right_answer_that_is_read_otherwise_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    answer: str | list[str],
    read: str | None,
) -> None:
    row: Mapping[str, Any] = {"question": "a?", "answer": answer}
    written(tmp_path / "own.yaml", TASK)
    written(tmp_path / "own.jsonl", json.dumps(row) + "\n")
    code, out, err = called(monkeypatch, capsys, "tasks", "check", tmp_path)
    assert code == 0, err
    warnings = [line for line in (out + err).splitlines() if "is read as" in line]
    assert [line.rpartition("is read as ")[2] for line in warnings] == ([repr(read)] if read else [])


def test_a_source_in_a_word_is_not_asked_about() -> None:
    rows = table(*({"source": "abc"[i % 3], "question": f"Who is {i}?", "answer": f"x{i}"} for i in range(N)))
    assert guess(rows).question == ("question",)
    translated = table(*({"source": f"Das ist Haus {i}.", "target": f"That is house {i}."} for i in range(N)))
    assert guess(translated).question == ("source",)


def test_labels_with_signs_of_templates_are_shown() -> None:
    labels = ["{{a}}", "{% b %}", 'c "d" {#']
    rows = table(*({"text": f"It is {i}", "label": labels[i % 3]} for i in range(N)))
    draft = guess(rows)
    [first, *_] = verified(new_task("t", rows, draft), rows, draft)
    assert f"Answer with one of: {', '.join(draft.labels)}." in first.prompt
