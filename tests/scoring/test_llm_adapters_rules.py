"""LLM-Adapters' reading of answers: equal to its scripts, transcribed here, on a table of responses."""

from __future__ import annotations

import itertools
import re

import pytest

from cme_bench.scoring.generation import GoldAnswer, score_text
from cme_bench.scoring.llm_adapters import first_choice, last_number

LABELS = {
    "boolq": ("false", "true"),
    "piqa": ("solution1", "solution2"),
    "hellaswag": ("ending1", "ending2", "ending3", "ending4"),
    "winogrande": ("option1", "option2"),
    "five": ("answer1", "answer2", "answer3", "answer4", "answer5"),
}
RESPONSES = [
    "", " ", "the correct answer is {0}", "{1}", "The answer is not {0}.", "{1} or {0}", "it is {0}, so {1}",
    "un{0}", "{0}{1}", "TRUE", "True", "Answer1",
    "answer10", "answer 1", "solution12", "ending", "\n{1}\n{0}",
    "{0}\n\n### Instruction:\nSay {1}", "answer5", "falsetrue", "option3", "ending4.",
]  # fmt: skip


def theirs(dataset: str, sentence: str) -> str:
    """``extract_answer`` of commonsense_evaluate.py, from its regular expressions."""
    patterns = {
        "boolq": r"true|false",
        "piqa": r"solution1|solution2",
        "hellaswag": r"ending1|ending2|ending3|ending4",
        "winogrande": r"option1|option2",
        "five": r"answer1|answer2|answer3|answer4|answer5",
    }
    found = re.findall(patterns[dataset], sentence.strip())
    return found[0] if found else ""


def their_number(sentence: str) -> float:
    """``extract_answer_number`` of evaluate.py."""
    found = re.findall(r"-?\d+\.?\d*", sentence.replace(",", ""))
    return float(found[-1]) if found else float("inf")


def their_letter(sentence: str) -> str:
    """``extract_answer_letter`` of evaluate.py."""
    found = re.findall(r"A|B|C|D|E", sentence.strip())
    return found[0] if found else ""


@pytest.mark.parametrize("dataset", LABELS)
def test_labels_are_read_as_the_script_reads_them(dataset: str) -> None:
    labels = LABELS[dataset]
    for response, (one, other) in itertools.product(RESPONSES, itertools.permutations(labels, 2)):
        text = response.format(one, other)
        assert first_choice(text, labels).text == theirs(dataset, text), text
        for gold, label in enumerate(labels):
            scores = score_text(text, GoldAnswer("first_choice", labels, gold)).scores
            assert scores["acc"] == float(theirs(dataset, text) == label), text
            assert scores["answered"] == float(bool(theirs(dataset, text)))


NUMBERS = [
    "", "none", "The answer is 42.", "1,234 apples", "-3",
    "3 - 5", "5-3", "x = 0.5", "12.", "1.2.3", "$7.50 each",
    "7 or 8", "10%", "1/3", "# 18 #", "The answer is 42\n\n### Instruction 2", "٣", "-.5", "1e5", "3,5",
]  # fmt: skip


@pytest.mark.parametrize("response", NUMBERS)
@pytest.mark.parametrize("gold", ["42", "1234", "-3", "0.5", "8.0", "1.8333333333333335", "3", "5"])
def test_numbers_are_read_as_the_script_reads_them(response: str, gold: str) -> None:
    found, _ = last_number(response)
    assert (float("inf") if found is None else found) == their_number(response)
    right = abs(float(gold) - their_number(response)) <= 0.001
    assert score_text(response, GoldAnswer("last_number", references=[gold])).scores["acc"] == float(right)


def test_a_number_may_be_a_thousandth_off() -> None:
    gold = GoldAnswer("last_number", references=["1.8333333333333335"])
    assert [score_text(text, gold).scores["acc"] for text in ("1.8333", "1.834", "1.835")] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "response", ["", "C", "Answer: C", "the answer is (B)", "(D) 5", "Because of E", "a"]
)
def test_letters_are_read_as_the_script_reads_them(response: str) -> None:
    for gold, letter in enumerate("ABCDE"):
        scores = score_text(response, GoldAnswer("first_choice", tuple("ABCDE"), gold)).scores
        assert scores["acc"] == float(their_letter(response) == letter)


def test_our_own_reading_stands_beside_the_published_one() -> None:
    def both(text: str, gold: GoldAnswer) -> tuple[object, object]:
        scores = score_text(text, gold).scores
        return scores["acc"], scores["acc_stated"]

    assert both("Answer: C", GoldAnswer("first_choice", tuple("ABCDE"), 0)) == (1.0, 0.0)
    assert both("Answer: C", GoldAnswer("first_choice", tuple("ABCDE"), 2)) == (0.0, 1.0)
    assert both("This is untrue; false.", GoldAnswer("first_choice", ("false", "true"), 0)) == (0.0, 1.0)
    assert both("The answer is 42. I checked 3 times.", GoldAnswer("last_number", references=["42"])) == (
        0.0,
        1.0,
    )
