"""Lists and mappings among the columns: shown by nobody, so never lost without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cme_bench.authoring.guess import guess
from cme_bench.authoring.new_options import Told
from cme_bench.authoring.table_files import Table
from cme_bench.authoring.verify import verified
from cme_bench.authoring.write import new_task
from cme_bench.util.errors import UsageError

N = 12


def rows(**columns: Any) -> Table:
    """Questions whose answers are in no other column, and ``columns``, the same in every row."""
    made = [{"question": f"Who is number {i}?", **columns, "answer": f"name {i}"} for i in range(N)]
    return Table(made, "rows", list(range(1, N + 1)))


READ: dict[str, Any] = {
    "dialogue": ["W: Hello there, you.", "M: Good day to you."],
    "history": ["Hi", "Hello"],
    "context": {"title": ["T"], "sentences": [["One."]]},
    "passages": ["One.", "Two."],
    "evidence": [[["1", "2", "Page", 0]]],
    "table": {"header": ["a", "b"], "rows": [["1", "2"]]},
    "messages": [{"role": "user", "content": "Tell me who that is."}],
    "material": ["A long sentence to read.", "And another one of those."],
}


@pytest.mark.parametrize("name", READ)
def test_what_may_be_part_of_the_question_is_refused(name: str) -> None:
    table = rows(**{name: READ[name]})
    with pytest.raises(UsageError, match=rf"{name} \(.*\) may be part of the question.*--question question"):
        guess(table)
    draft = guess(table, Told(question=("question",)))
    assert (draft.question, list(draft.unused)) == (("question",), [name])


BESIDE: dict[str, Any] = {
    "tags": ["geo", "easy"],
    "metadata": {"source": "x", "page": 3},
    "embedding": [0.1, 0.2],
    "entities": [{"text": "France", "type": "LOC"}],
    "other_answers": ["not this one here", "nor that one there"],
    "question_id": ["a long name of an id"],
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_describes_a_row_is_left_out(name: str) -> None:
    assert guess(rows(**{name: BESIDE[name]})).question == ("question",)


def test_a_chat_of_the_same_question_is_left_out() -> None:
    made = [
        {
            "question": f"Who is number {i}?",
            "messages": [{"role": "user", "content": f"Who is number {i}?"}, {"role": "assistant"}],
            "answer": f"name {i}",
        }
        for i in range(N)
    ]
    assert guess(Table(made, "rows")).question == ("question",)


def test_rows_without_an_answer_name_what_holds_one() -> None:
    table = Table([{"messages": [{"role": "user", "content": "Hi"}]}] * 2, "rows")
    with pytest.raises(
        UsageError, match=r"write what is inside messages \(list of mappings of role, content\)"
    ):
        guess(table)


def test_a_list_of_texts_that_is_told_is_shown_as_lines() -> None:
    table = rows(dialogue=["W: Hello.", "M: Good day."])
    draft = guess(table, Told(question=("dialogue", "question")))
    [first, *_] = verified(new_task("t", table, draft), table, draft)
    assert "Dialogue: W: Hello.\nM: Good day.\nQuestion: Who is number 0?" in first.prompt


def test_a_mapping_that_is_told_is_refused() -> None:
    table = rows(context={"title": "T"})
    draft = guess(table, Told(question=("context", "question")))
    with pytest.raises(UsageError, match="rows:1: context: a mapping is no text to show"):
        new_task("t", table, draft)


def test_wrong_options_may_stand_in_a_list_beside_the_right_one() -> None:
    table = rows(incorrect_answers=["nobody", "somebody"])
    told = Told(kind="choice", choices=("incorrect_answers", "answer"), answer="answer", way="text")
    draft = guess(table, told)
    assert [option.text for option in draft.options[0]] == ["nobody", "somebody", "name 0"]
    assert draft.golds == (2,) * N


def test_lists_of_several_types_are_kept_as_texts(tmp_path: Path) -> None:
    table = rows(spans=[["a", 1], [2, "b"]])
    draft = guess(table)
    task = new_task("t", table, draft)
    assert task.files["t_test.jsonl"][0]["spans"] == '[["a", 1], [2, "b"]]'
    verified(task, table, draft)


def test_a_prompt_with_its_answer_is_not_shown() -> None:
    made = [
        {
            "instruction": f"Name the thing of number {i}.",
            "output": f"thing {i}",
            "text": f"### Instruction: Name the thing of number {i}.\n### Response: thing {i}",
        }
        for i in range(N)
    ]
    draft = guess(Table(made, "rows"))
    assert draft.question == ("instruction",)
    assert draft.unused == {"text": "gives the answer away"}


def test_a_passage_that_holds_a_short_name_and_the_answer_is_shown() -> None:
    made = [
        {
            "passage": f"The capital number {i} is City{i}, they say.",
            "question": "capital",
            "answer": f"City{i}",
        }
        for i in range(N)
    ]
    assert guess(Table(made, "rows")).question == ("passage", "question")
