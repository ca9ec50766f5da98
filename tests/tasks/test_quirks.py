"""The oddities of the 28 datasets, each by rows of our own in the dataset's form."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest

from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.suite import load_suite

SUITE = load_suite()


@functools.cache
def built(name: str) -> Task:
    return build_task(SUITE.task(name), SUITE, mini_source())


def gold(name: str, row: Mapping[str, Any]) -> str:
    """The right answer of a row as the task reads it: a choice, or the first reference."""
    task = built(name).lm_eval
    target = task.doc_to_target(row)
    if task.config.doc_to_choice is None:
        return str(target[0]) if isinstance(target, list) else str(target)
    return str(task.doc_to_choice(row)[task.doc_to_text(row) if task.multiple_input else target])


LABELS = [
    # negative comes first in both film review sets
    (["cme_imdb", "cme_imdb_ll"], {"text": "x"}, ["negative", "positive"]),
    (["cme_sst2", "cme_sst2_ll"], {"sentence": "x"}, ["negative", "positive"]),
    (
        ["cme_emotion", "cme_emotion_ll"],
        {"text": "x"},
        ["sadness", "joy", "love", "anger", "fear", "surprise"],
    ),
    (
        [
            f"cme_{name}{form}"
            for name in ("anli_r1", "anli_r2", "anli_r3", "snli", "mnli")
            for form in ("", "_ll")
        ],
        {"premise": "p", "hypothesis": "h"},
        ["entailment", "neutral", "contradiction"],
    ),
    # 1 means equal, but RTE's 0 means entailed
    (["cme_qqp", "cme_qqp_ll"], {"question1": "a", "question2": "b"}, ["no", "yes"]),
    (["cme_mrpc", "cme_mrpc_ll"], {"sentence1": "a", "sentence2": "b"}, ["no", "yes"]),
    (["cme_rte", "cme_rte_ll"], {"sentence1": "a", "sentence2": "b"}, ["yes", "no"]),
    (["cme_boolq", "cme_boolq_ll"], {"passage": "p", "question": "q"}, ["no", "yes"]),
]


@pytest.mark.parametrize(("tasks", "row", "labels"), LABELS)
def test_label_orders(tasks: list[str], row: dict[str, Any], labels: list[str]) -> None:
    for name in tasks:
        assert [gold(name, row | {"label": i}) for i in range(len(labels))] == labels


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "openbookqa", "commonsense_qa"])
@pytest.mark.parametrize("labels", ["ABC", "ABCD", "ABCDE", "1234", "12345"])
def test_lettered_options_of_three_to_five_named_by_letters_or_digits(name: str, labels: str) -> None:
    stem = "question_stem" if name == "openbookqa" else "question"
    texts = [f"option {i}" for i in range(len(labels))]
    for index, key in enumerate(labels):
        row = {stem: "q?", "choices": {"text": texts, "label": list(labels)}, "answerKey": key}
        assert gold(f"cme_{name}_ll", row) == texts[index]
        assert gold(f"cme_{name}", row) == "ABCDE"[index]
        shown = built(f"cme_{name}").lm_eval.doc_to_text(row)
        assert all(f"\n{letter}. {text}\n" in shown for letter, text in zip("ABCDE", texts, strict=False))
        answer = built(f"cme_{name}").lm_eval.gold_answer(row)
        assert (list(answer.options), len(answer.choices)) == (texts, len(texts))


def test_sst2_sentences_end_with_a_space_that_is_not_asked() -> None:
    for name in ("cme_sst2", "cme_sst2_ll"):
        text = built(name).lm_eval.doc_to_text({"sentence": "a fine film ", "label": 1})
        assert "Sentence: a fine film\n" in text


def test_imdb_reviews_hold_html_breaks() -> None:
    text = built("cme_imdb").lm_eval.doc_to_text({"text": "Good.<br />Bad.", "label": 0})
    assert "Good. Bad." in text


def test_pairs_that_annotators_did_not_agree_on_are_dropped() -> None:
    import datasets

    from cme_bench.tasks.docs import drop_unlabelled

    rows = datasets.Dataset.from_list([{"label": label} for label in (0, -1, 2)])
    assert drop_unlabelled(rows)["label"][:] == [0, 2]


def test_winogrande_answers_are_the_texts_1_and_2() -> None:
    row = {"sentence": "The cup is in _ bag.", "option1": "his", "option2": "her", "answer": "2"}
    assert gold("cme_winogrande", row) == "B"
    assert gold("cme_winogrande_ll", row) == "The cup is in her"


def test_hellaswag_labels_are_texts_and_prepared_contexts_give_the_same_question() -> None:
    row = {
        "activity_label": "Cooking",
        "ctx_a": "A man cooks.",
        "ctx_b": "he",
        "endings": list("abcd"),
        "label": "3",
    }
    prepared = row | {"ctx_a": "A man cooks. He", "ctx_b": ""}  # as the training rows of a data folder are
    for name, right in (("cme_hellaswag", "D"), ("cme_hellaswag_ll", "d")):
        assert gold(name, row) == right
        assert built(name).lm_eval.doc_to_text(row) == built(name).lm_eval.doc_to_text(prepared)
    marked = row | {"endings": ["stirs [substeps] it", "b", "c", "d"]}
    assert built("cme_hellaswag").lm_eval.doc_to_text(marked).count("A. stirs it\n") == 1


def test_sciq_is_scored_on_validation_where_there_is_no_test_split() -> None:
    for name in ("cme_sciq", "cme_sciq_ll"):
        assert SUITE.task(name).eval_split == "test"
        assert SUITE.task(name).file_stem("test") == "validation"
    assert {SUITE.task(f"cme_anli_r{i}").eval_split for i in (1, 2, 3)} == {"test_r1", "test_r2", "test_r3"}
    assert SUITE.task("cme_anli_r2").file_stem("test_r2") == "test"


@pytest.mark.parametrize(
    ("name", "row", "right", "wrong"),
    [
        ("cme_nq_open", {"question": "q", "answer": ["14 December", "December"]}, ["december"], ["14"]),
        (
            "cme_triviaqa",
            {
                "question": "q",
                "answer": {"value": "Sunset Boulevard", "aliases": ["Sunset Blvd", "Sunset Bulevard"]},
            },
            ["Sunset Boulevard", "sunset blvd.", "The Sunset Bulevard"],
            ["Sunset"],
        ),
        (
            "cme_squad",
            {
                "context": "c",
                "question": "q",
                "answers": {"text": ["in 1953", "1953"], "answer_start": [0, 3]},
            },
            ["1953", "In 1953."],
            ["1935"],
        ),
        (
            "cme_squad",
            {"context": "c", "question": "q", "answers": {"text": ["one"], "answer_start": [0]}},
            ["one"],
            ["two"],
        ),
    ],
)
def test_every_reference_and_alias_counts(
    name: str, row: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    task = built(name).lm_eval
    assert [task.score_text(row, text).scores["em"] for text in right] == [1.0] * len(right)
    assert [task.score_text(row, text).scores["em"] for text in wrong] == [0.0] * len(wrong)


def test_boolq_passages_begin_with_their_title_and_questions_have_no_mark() -> None:
    row = {"passage": "Ethanol fuel -- All biomass is grown.", "question": "does it take energy", "label": 1}
    text = built("cme_boolq").lm_eval.doc_to_text(row)
    assert "Passage: Ethanol fuel -- All biomass is grown.\nQuestion: does it take energy?\n" in text


def test_mmlu_answers_are_indices_and_cmmlus_are_letters_under_capital_names() -> None:
    row = {"question": " q", "choices": list("wxyz"), "answer": 2, "subject": "high_school_physics"}
    assert (gold("cme_mmlu", row), gold("cme_mmlu_ll", row)) == ("C", "C")
    assert "about high school physics" in built("cme_mmlu").lm_eval.doc_to_text(row)
    row = {"Question": "问", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "Answer": "D", "subject": "agronomy"}
    for name in ("cme_cmmlu", "cme_cmmlu_ll"):
        assert gold(name, row) == "D"
        assert "题目：问\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n" in built(name).lm_eval.doc_to_text(row)
    task = built("cme_cmmlu").lm_eval
    scores = [task.score_text(row, text).scores["acc"] for text in ("D", "答案是D", "丁", "A")]
    assert scores[0] == scores[2] == 1.0
    assert scores[3] == 0.0


def test_gsm8k_answers_end_behind_four_marks_and_exemplars_lose_the_calculator() -> None:
    row = {"question": "q", "answer": "So 2 * 500 = <<2*500=1000>>1000.\n#### 1,000"}
    task = built("cme_gsm8k").lm_eval
    assert task.doc_to_target(row) == "So 2 * 500 = 1000.\n#### 1,000"
    answers = ("#### 1000", "The answer is $1,000.", "1000.00", "100", "")
    assert [task.score_text(row, text).scores["acc"] for text in answers] == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_samsum_dialogues_have_windows_line_ends() -> None:
    row = {"id": "1", "dialogue": "A: Hi\r\nB: Hello\r\n", "summary": "They greet."}
    assert "Conversation:\nA: Hi\nB: Hello\n\nSummary:" in built("cme_samsum").lm_eval.doc_to_text(row)
