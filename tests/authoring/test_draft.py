"""What rows seem to ask: families of columns, each read right or refused with the flag that decides."""

from __future__ import annotations

from typing import Any

import pytest

from cme_bench.authoring.draft import Draft
from cme_bench.authoring.guess import guess
from cme_bench.authoring.new_options import Told
from cme_bench.authoring.table_files import Table
from cme_bench.util.errors import UsageError


def table(*rows: dict[str, Any], typed: bool = True) -> Table:
    return Table(rows, "rows", list(range(2, len(rows) + 2)), typed)


def golds(draft: Draft) -> list[str]:
    return [options[gold].text for options, gold in zip(draft.options, draft.golds, strict=True)]


Q = {"question": "What is it?"}
CHOICES: dict[str, tuple[Table, list[str]]] = {
    "letters of columns": (
        table(Q | {"A": 1, "B": 2, "answer": "B"}, Q | {"A": 3, "B": 4, "answer": "A"}),
        ["2", "3"],
    ),
    "a blank in the middle": (
        table(
            Q | {"A": "x", "B": "", "C": "z", "answer": "C"},
            Q | {"A": "x", "B": "y", "C": "z", "answer": "B"},
        ),
        ["z", "y"],
    ),
    "a blank in the middle of a list": (
        table(
            Q | {"options": ["x", None, "z"], "answer": "C"}, Q | {"options": ["x", "y", "z"], "answer": "A"}
        ),
        ["z", "x"],
    ),
    "numbers as texts": (
        table(
            {"question": "1+1?", "A": "1", "B": "2", "C": "3", "D": "", "answer": "2"},
            {"question": "2-2?", "A": "2", "B": "1", "C": "3", "D": "0", "answer": "0"},
            typed=False,
        ),
        ["2", "0"],
    ),
    "a mapping by letter": (
        table(
            Q | {"options": {"A": "xx", "B": "yy"}, "answer_idx": "A", "answer": "xx"},
            Q | {"options": {"A": "xx", "B": "yy"}, "answer_idx": "B", "answer": "yy"},
        ),
        ["xx", "yy"],
    ),
    "objects": (
        table(
            Q | {"choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], "answerKey": "B"},
            Q | {"choices": [{"label": "1", "text": "x"}, {"label": "2", "text": "y"}], "answerKey": "1"},
        ),
        ["y", "x"],
    ),
    "objects with ids": (
        table(
            Q | {"options": [{"id": "p", "content": "x"}, {"id": "q", "content": "y"}], "correct_option": "q"}
        ),
        ["y"],
    ),
    "texts of lists": (
        table(
            Q | {"choices": "['x', 'y']", "answer": "0"},
            Q | {"choices": '["x", "y"]', "answer": "1"},
            typed=False,
        ),
        ["x", "y"],
    ),
    "columns numbered from 1": (
        table({"sentence": "_ won.", "option1": "Ann", "option2": "Bo", "answer": "1"}),
        ["Ann"],
    ),
    "columns numbered from 0": (
        table(
            *({"ctx": "He", "ending0": "x", "ending1": "y", "ending2": "z", "label": i} for i in (1, 2, 1))
        ),
        ["y", "z", "y"],
    ),
    "answers counted from 1": (
        table(Q | {"choices": ["x", "y"], "answer": 1}, Q | {"choices": ["x", "y"], "answer": 2}),
        ["x", "y"],
    ),
    "options that begin with their letters": (
        table(Q | {"options": ["(A)3", "(B)4"], "label": "B", "answer": None}),
        ["4"],
    ),
    "places as pandas writes floats": (
        table(
            Q | {"choices": "['x', 'y']", "answer": "1.0"},
            Q | {"choices": "['x', 'y']", "answer": "0.0"},
            typed=False,
        ),
        ["y", "x"],
    ),
    "a list of one": (
        table(Q | {"choices": ["x", "y", "z"], "answer": [2]}, Q | {"choices": ["x", "y"], "answer": [0]}),
        ["z", "x"],
    ),
    "a letter and its text": (
        table(Q | {"A": "x", "B": "y", "answer": "B. y"}, Q | {"A": "v", "B": "w", "answer": "(A) v"}),
        ["y", "v"],
    ),
    "names in another spelling": (
        table(
            {
                "Question Text": "?",
                "Option A": "x",
                "Option B": "y",
                "Correct Option": "B",
                "Question": "Why?",
            }
        ),
        ["y"],
    ),
    "names in camel case": (
        table({"question": "Why?", "optionA": "x", "optionB": "y", "correctAnswer": "A"}),
        ["x"],
    ),
    "small letters before options": (
        table(
            Q | {"choices": ["(a) x", "(b) y"], "answer": "B"},
            Q | {"choices": ["(a) v", "(b) w"], "answer": "A"},
        ),
        ["y", "v"],
    ),
    "ten options": (
        table(Q | {f"option{i}": f"x{i}" for i in range(1, 12)} | {"answer": "11"}, typed=False),
        ["x11"],
    ),
    "NA words": (table(Q | {"A": "None", "B": "Some", "answer": "None"}, typed=False), ["None"]),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_right_option_is_found(name: str) -> None:
    rows, right = CHOICES[name]
    draft = guess(rows)
    assert draft.kind == "choice"
    assert golds(draft) == right


REFUSED: dict[str, tuple[Table, Told, str]] = {
    "0 or 1": (
        table(Q | {"choices": ["x", "y", "z"], "answer": 1}),
        Told(),
        "--answer-is index0 or --answer-is index1",
    ),
    "numbers among numbers": (
        table(Q | {"choices": [1, 2, 3], "answer": 1}, Q | {"choices": [2, 1, 0], "answer": 2}),
        Told(),
        "--answer-is text or --answer-is index0 or",
    ),
    "none of the options": (
        table(Q | {"choices": ["x", "y"], "answer": "E"}),
        Told(),
        "rows:2: the answer 'E' is none",
    ),
    "one option": (
        table(Q | {"choices": ["x"], "answer": "x"}),
        Told(),
        "rows:2: there is one option in choices",
    ),
    "options that are no list": (
        table(Q | {"choices": "a|b|c", "answer": "a"}, Q | {"choices": "a|b|c", "answer": "b"}, typed=False),
        Told(),
        "rows:2: choices 'a|b|c' is no list of options",
    ),
    "numpy's list": (
        table(Q | {"choices": "['x' 'y']", "answer": "x"}, typed=False),
        Told(kind="choice", choices=("choices",)),
        "no commas between its parts",
    ),
    "two answers that differ": (
        table({"text": "a b c", "label": "x", "target": "y"}, {"text": "d e f", "label": "y", "target": "x"}),
        Told(),
        "--answer label or --answer target",
    ),
    "another text": (
        table({"question": "Who did it?", "hearsay": "People say that Bo did it", "answer": "Ann"}),
        Told(),
        "--question question,hearsay",
    ),
    "a short text of a pair": (
        table(*({"sentence": f"He saw bank {i}", "word": w, "label": "yes"} for i, w in enumerate("abc"))),
        Told(),
        "--question sentence,word",
    ),
    "a word that the sentences hold": (
        table(
            *(
                {"word": w, "sentence1": f"The {w} is here.", "sentence2": f"No {w} there.", "label": "yes"}
                for w in ("bank", "run", "bat")
            )
        ),
        Told(),
        "--question sentence1,sentence2,word",
    ),
    "wrong options": (
        table(Q | {"distractor1": "x", "distractor2": "y", "correct_answer": "z"}),
        Told(),
        "--choices distractor1,distractor2,correct_answer",
    ),
    "integers as labels": (
        table({"text": "a", "label": 0}, {"text": "b", "label": 1}),
        Told(),
        "name the labels 0, 1 in this order with --labels",
    ),
    "digits of a CSV as labels": (
        table(*({"text": str(i) * 3, "label": str(i % 2)} for i in range(8)), typed=False),
        Told(),
        "name the labels 0, 1 in this order",
    ),
    "labels for a number task": (
        table({"question": "?", "answer": 3}),
        Told(kind="number", labels=("a",)),
        "--labels goes",
    ),
    "a list in a CSV": (
        table(Q | {"answer": "['seven']"}, Q | {"answer": "['eight', '8']"}, typed=False),
        Told(kind="qa"),
        "--answer-is list",
    ),
    "an option that is blank in every row": (
        table(*(Q | {"A": "x", "B": "", "C": "z", "answer": answer} for answer in "CB"), typed=False),
        Told(),
        "rows:3: the answer 'B' is none of the options ['x', 'z']",
    ),
    "a key that is left out": (
        table(Q | {"options": {"A": "x", "C": "z", "D": "v"}, "answer": "B"}),
        Told(),
        "rows:2: the answer 'B' is none of the options",
    ),
    "a column that is left out": (
        table(Q | {"option_1": "x", "option_2": "y", "option_4": "z", "answer": "3"}, typed=False),
        Told(),
        "rows:2: the answer '3' is none of the options",
    ),
    "another text after the letter": (
        table(Q | {"A": "x", "B": "y", "answer": "B. x"}),
        Told(),
        "rows:2: the answer 'B. x' is none of the options",
    ),
    "two right options": (
        table(Q | {"choices": ["x", "y", "z"], "answer": [1]}, Q | {"choices": ["x", "y"], "answer": [0, 1]}),
        Told(),
        "rows:3: answer [0, 1] names 2 options",
    ),
    "right and wrong answers in one list": (
        table(Q | {"answers": [{"text": "x", "is_correct": True}, {"text": "y", "is_correct": False}]}),
        Told(),
        "rows:2: answers: 'is_correct' says which answers are right",
    ),
    "answers that are parted": (
        table(*(Q | {"answer": f"{name}; {name} {name}"} for name in ("Ann", "Bo", "Cy")), typed=False),
        Told(),
        "--separator ';' (each part is accepted) or --answer-is text",
    ),
    "several labels of a row": (
        table(*({"text": f"It is {i}.", "labels": ["joy", "love"][: i % 2 + 1]} for i in range(8))),
        Told(),
        "rows:3: labels ['joy', 'love'] are several labels of one row",
    ),
    "more labels than can be listed": (
        table(*({"text": f"It is {i}.", "intent": "", "label": f"intent {i % 30}"} for i in range(90))),
        Told(),
        "label has 30 different labels, and a label task 20 at most; say --type qa",
    ),
    "a mark as a label": (
        table(*({"text": f"It is {i}.", "label": "-+"[i % 2]} for i in range(8))),
        Told(),
        "name the labels +, - in this order",
    ),
    "a row without its question": (
        table(Q | {"answer": "x y"}, {"question": None, "answer": "z"}),
        Told(kind="qa"),
        "rows:3: there is no question in question",
    ),
    "no answer": (
        table(Q | {"answer": "x"}, Q | {"answer": []}),
        Told(kind="qa"),
        "rows:3: there is no answer",
    ),
    "only ids": (table({"id": "1", "answer": "x"}), Told(kind="qa"), "--question"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(name: str) -> None:
    rows, told, message = REFUSED[name]
    with pytest.raises(UsageError) as caught:
        guess(rows, told)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SHOWN: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "RTE": (
        {"sentence1": "A cat.", "sentence2": "An animal.", "label": "yes", "idx": 0},
        ("sentence1", "sentence2"),
    ),
    "NLI": ({"premise": "It rains.", "hypothesis": "It is wet.", "label": "yes"}, ("premise", "hypothesis")),
    "QQP": (
        {"qid": "7", "question1": "Why is it?", "question2": "How is it?", "label": "no"},
        ("question1", "question2"),
    ),
    "BoolQ": ({"question": "is it so", "passage": "It is so.", "label": "yes"}, ("passage", "question")),
    "Alpaca": (
        {"instruction": "Translate this text", "input": "Guten Tag", "output": "Hello"},
        ("instruction", "input"),
    ),
    "rationales": (
        {"question": "Who?", "explanation": "Because Ann was there", "answer": "Ann"},
        ("question",),
    ),
    "subjects": ({"question": "Who?", "subject": "history of art", "answer": "Ann"}, ("question",)),
    "AG news": (
        {"title": "Oil rises again", "description": "Prices rose.", "label": "business"},
        ("title", "description"),
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_both_texts_of_a_pair_are_shown_and_nothing_that_gives_it_away(name: str) -> None:
    row, shown = SHOWN[name]
    draft = guess(
        table(row, {k: f"{v} too" if isinstance(v, str) and k != "label" else v for k, v in row.items()})
    )
    assert draft.question == shown
    assert set(draft.unused) == set(row) - set(shown) - {draft.answer}


def test_flags_decide() -> None:
    rows = table(Q | {"choices": ["x", "y", "z"], "answer": 1})
    assert golds(guess(rows, Told(way="index1"))) == ["x"]
    assert golds(guess(rows, Told(way="index0"))) == ["y"]
    ratings = table(*({"text": str(i), "label": n} for i, n in enumerate((1, 0, 10, 2))))
    draft = guess(ratings, Told(labels=("zero", "one", "two", "ten")))
    assert (draft.kind, draft.values, draft.labels) == ("label", (0, 1, 2, 10), ("zero", "one", "two", "ten"))
    as_texts = table(*({"text": str(i), "label": str(n)} for i, n in enumerate((1, 0, 10, 2))), typed=False)
    assert guess(as_texts, Told(labels=("zero", "one", "two", "ten"))).values == ("0", "1", "2", "10")


def test_answers_that_look_like_lists_stay_texts() -> None:
    draft = guess(table(Q | {"answer": "[1, 2]"}, Q | {"answer": "['a', 'b']"}), Told(kind="qa"))
    assert draft.references == (("[1, 2]",), ("['a', 'b']",))
    several = guess(table(Q | {"answer": {"value": "x", "aliases": ["x", "y"]}}))
    assert several.references == (("x", "y"),)


def test_an_answer_that_no_json_holds_is_named() -> None:
    rows = Table([Q, Q], "rows", unread={"answer": "rows:3: answer holds an infinite number"})
    with pytest.raises(UsageError, match=r"^rows:3: answer holds an infinite number$"):
        guess(rows)


def test_a_sign_of_markup_parts_no_answers() -> None:
    rows = table(*(Q | {"answer": f"{name} &amp; Co"} for name in ("Ann", "Bo", "Cy")), typed=False)
    assert guess(rows, Told(kind="qa")).references[0] == ("Ann &amp; Co",)
    parted = table(*(Q | {"answer": f"{name}; {name} Li"} for name in ("Ann", "Bo", "Cy")), typed=False)
    assert guess(parted, Told(kind="qa", separator=";")).references[0] == ("Ann", "Ann Li")
    assert guess(parted, Told(kind="qa", way="text")).references[0] == ("Ann; Ann Li",)


def test_numbers_with_thousands_are_no_lists() -> None:
    rows = table(*(Q | {"answer": f"{i},250"} for i in range(1, 30)), typed=False)
    assert guess(rows).kind == "number"


def test_labels_that_differ_by_case_or_blanks_are_warned_of() -> None:
    rows = table(*({"text": f"t{i}", "label": ["good", "Good", "bad ", "bad"][i % 4]} for i in range(9)))
    draft = guess(rows)
    assert draft.labels == ("Good", "bad", "good")
    assert any(note.startswith("warning: labels differ by case or blanks") for note in draft.notes)
