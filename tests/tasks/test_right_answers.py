"""A run refuses a task whose right answers cannot be read, by one line with the row, before a model loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.tasks.references import refuse_unreadable
from cme_bench.util.errors import UsageError
from tests.support.workshop import Workshop

NUMBER = """\
task: own
dataset_path: own/data
test_split: test
output_type: generate_until
doc_to_text: "Q: {{ question }}\\nA:"
doc_to_target: answer
metadata: {dataset: own, answer: {type: TYPE}}
"""


def write(own: Workshop, kind: str, *answers: str) -> None:
    own.write_yaml()
    own.yaml.write_text(NUMBER.replace("TYPE", kind))
    own.write_rows("test", [{"question": f"{i}?", "answer": answer} for i, answer in enumerate(answers)])


@pytest.mark.parametrize(
    ("kind", "answers", "said"),
    [
        ("number", ("3", "3:30"), r"test\.jsonl:2: task own: the right answer '3:30' is no plain number"),
        ("number", ("3", ""), r"test\.jsonl:2: task own: the right answer is empty"),
        ("math", ("x", "a sum of many small and some larger numbers"), r"test\.jsonl:2: .* no expression"),
        ("number", ("0,5", "1,234"), r"own\.yaml:7: the right answer '1,234' may be thousands"),
    ],
)
def test_what_is_refused(tmp_path: Path, kind: str, answers: tuple[str, ...], said: str) -> None:
    own = Workshop(tmp_path)
    write(own, kind, *answers)
    with pytest.raises(UsageError, match=said):
        refuse_unreadable(own.build(), range(2))


def test_what_can_be_read_is_not_refused(tmp_path: Path) -> None:
    own = Workshop(tmp_path)
    for kind, answers in (("number", ("3", "3/4")), ("math", ("x^2", "5")), ("short", ("3:30", "x"))):
        write(own, kind, *answers)
        refuse_unreadable(own.build(), range(2))
    write(own, "{type: number, decimal: comma}".removeprefix("{type: ").removesuffix("}"), "0,5", "1,234")
    task = own.build()
    refuse_unreadable(task, range(2))
    assert task.lm_eval.score_text(task.docs[1], "1,234").scores["acc"] == 1.0
    assert task.lm_eval.score_text(task.docs[1], "1234").scores["acc"] == 0.0


def test_a_run_refuses_the_items_it_asks_before_it_answers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    own = Workshop(tmp_path)
    write(own, "number", "none", "none")
    options = RunOptions(
        model=str(tiny_checkpoint),
        tasks="own",
        include=(own.yaml,),
        data=str(tmp_path / "data"),
        out=tmp_path / "run",
    )
    with pytest.raises(UsageError, match="no plain number"):
        run(options)
    assert not (tmp_path / "run").exists()


def test_a_text_that_looks_like_a_list_is_one_answer_and_a_list_is_several(tmp_path: Path) -> None:
    own = Workshop(tmp_path)
    for template in ("answer", '"{{ answer }}"', '"{{ answer | trim }}"'):
        write(own, "short", "[1, 2]", "['a', 'b']")
        own.yaml.write_text(
            own.yaml.read_text().replace("doc_to_target: answer", f"doc_to_target: {template}")
        )
        task = own.build()
        for doc in task.docs:
            assert task.lm_eval.gold_answer(doc).references == [doc["answer"]]
            assert task.lm_eval.score_text(doc, doc["answer"]).scores["em"] == 1.0
            assert task.lm_eval.score_text(doc, "1").scores["em"] == 0.0
    write(own, "short", "x")
    own.write_rows("test", [{"question": "a?", "answer": ["1", "2"]}])
    for template in ("answer", '"{{ answer }}"', "\"{{ ['1'] + answer[1:] }}\""):
        write_to = own.yaml.read_text().splitlines()
        own.yaml.write_text(
            "\n".join(
                f"doc_to_target: {template}" if line.startswith("doc_to_target") else line
                for line in write_to
            )
        )
        task = own.build()
        assert task.lm_eval.gold_answer(task.docs[0]).references == ["1", "2"]


CHOSEN = """\
task: own
class: !function cme_bench.tasks.cme_task.CmeTask
dataset_path: own/data
test_split: test
output_type: generate_until
doc_to_text: "Q: {{ question }}\\nA:"
doc_to_choice: ["A", "B", "C"]
doc_to_target: TARGET
metadata: {dataset: own, answer: {type: letter, options: "OPTIONS"}}
"""


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        (
            "letter",
            "{{ texts }}",
            r"test\.jsonl:1: task own: doc_to_target gives 'B', but must give the place",
        ),
        ("place", "texts", r"metadata\.answer\.options gives no list of texts"),
        ("place", "{{ texts | join(', ') }}", r"metadata\.answer\.options gives no list of texts"),
        ("place", "{{ texts[:1] }}", r"the right answer is option 2, but there are 1"),
        ("texts", "{{ texts }}", r"doc_to_target gives \['x', 'y', 'z'\], but must give the place"),
        ("'{{ place + 2 }}'", "{{ texts }}", r"label 3 is out of range: there are 3 choices"),
        ("place", "{{ texts }}", ""),
    ],
)
def test_a_choice_that_is_named_otherwise_is_refused(
    workshop: Workshop, target: str, options: str, said: str
) -> None:
    workshop.write_yaml()
    workshop.yaml.write_text(CHOSEN.replace("TARGET", target).replace("OPTIONS", options))
    row = {"question": "?", "letter": "B", "place": 1, "texts": ["x", "y", "z"]}
    workshop.write_rows("test", [row, row])
    if not said:
        refuse_unreadable(workshop.build(), range(2))
        return
    with pytest.raises(UsageError, match=said):
        refuse_unreadable(workshop.build(), range(2))


def test_choices_and_texts_that_are_absent_are_refused(workshop: Workshop) -> None:
    write(workshop, "label", "0", "1")
    with pytest.raises(UsageError, match="answer type 'label' needs 'doc_to_choice'"):
        refuse_unreadable(workshop.build(), range(2))
    workshop.yaml.write_text(NUMBER.replace("TYPE", "short"))
    workshop.write_rows("test", [{"question": "?", "answer": {"text": ["x"]}}])
    with pytest.raises(UsageError, match=r"the right answer is no text, but \{'text': \['x'\]\}"):
        refuse_unreadable(workshop.build(), range(1))


def test_a_row_that_no_template_fits_is_one_line(workshop: Workshop) -> None:
    workshop.write_yaml()
    text = CHOSEN.replace("TARGET", "place").replace("OPTIONS", "{{ texts }}")
    workshop.yaml.write_text(text.replace('["A", "B", "C"]', "\"{{ 'ABC'[:texts | length] | list }}\""))
    row = {"question": "?", "letter": "B", "place": 1, "texts": ["x", "y", "z"]}
    workshop.write_rows("test", [row, row | {"texts": None}])
    with pytest.raises(UsageError, match=r"test\.jsonl:2: task own: TypeError: object of type 'NoneType'"):
        refuse_unreadable(workshop.build(), range(2))
