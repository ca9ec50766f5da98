"""What is read out of responses: a table of what models say and what it means."""

from __future__ import annotations

import pytest

from cme_bench.scoring.extraction import (
    NOTHING,
    Extraction,
    extract_label,
    extract_letter,
    extract_short_answer,
    extract_text,
)

YES_NO = ("yes", "no")
NLI = ("entailment", "neutral", "contradiction")
TWO = ("entailment", "not entailment")
MOOD = ("negative", "positive")
EMOTION = ("sadness", "joy", "love", "anger", "fear", "surprise")


@pytest.mark.parametrize(
    ("response", "labels", "answer", "rule"),
    [
        ("yes", YES_NO, "yes", "exact"),
        (" Yes.", YES_NO, "yes", "exact"),
        ("NO!", YES_NO, "no", "exact"),
        ('"no"', YES_NO, "no", "exact"),
        ("**Yes**", YES_NO, "yes", "exact"),
        ("“Positive.”", MOOD, "positive", "exact"),
        ("`neutral`\n", NLI, "neutral", "exact"),
        ("Yes, the text says so.", YES_NO, "yes", "start"),
        ("No. There is no way to tell, yes it is odd.", YES_NO, "no", "start"),
        ("**No**, the text does not say yes.", YES_NO, "no", "start"),
        ("Positive\nBecause the review praises it.", MOOD, "positive", "start"),
        ("not entailment", TWO, "not entailment", "exact"),
        ("Not entailment, since nothing follows", TWO, "not entailment", "start"),
        ("entailment", TWO, "entailment", "exact"),
        ("It is not entailment.", TWO, "not entailment", "only"),
        ("This is an entailment.", TWO, "entailment", "only"),
        ("The answer is yes.", YES_NO, "yes", "answer_is"),
        ("The answer is: **no**.", YES_NO, "no", "answer_is"),
        ("Well.\nAnswer: “Yes”", YES_NO, "yes", "answer_is"),
        ("The sentiment is *negative*, I think", MOOD, "negative", "answer_is"),
        ("**Answer:** no", YES_NO, "no", "answer_is"),
        ("Relation (entailment, neutral or contradiction): neutral", NLI, "neutral", "answer_is"),
        ("Is it yes or no? The answer is no", YES_NO, "no", "answer_is"),
        ("The label would be contradiction", NLI, "contradiction", "answer_is"),
        ("The relationship between the two is contradiction", NLI, "contradiction", "answer_is"),
        ("This message conveys anger, not fear.", EMOTION, "anger", "only"),
        ("It does not convey any joy. It is sadness", EMOTION, "sadness", "only"),
        ("It expresses sadness rather than anger", EMOTION, "sadness", "only"),
        ("The reviewer feels positive about it, positive throughout", MOOD, "positive", "only"),
        # nothing is decided
        ("", YES_NO, "", "none"),
        ("Maybe", YES_NO, "", "none"),
        ("yes or no", YES_NO, "", "none"),
        ("yes/no", YES_NO, "", "none"),
        ("Sadness, joy, love, anger, fear or surprise", EMOTION, "", "none"),
        ("It could be positive or negative", MOOD, "", "none"),
        ("It is both joy and love", EMOTION, "", "none"),
        ("not entailment", NLI, "", "none"),
        ("The answer is not entailment", NLI, "", "none"),
        ("It isn't positive", MOOD, "", "none"),
        ("It isn’t a positive review", MOOD, "", "none"),
        ("The text cannot be positive", MOOD, "", "none"),
        ("Neither entailment nor contradiction", NLI, "", "none"),
        ("The sentiment is not positive", MOOD, "", "none"),
        ("It is non-positive", MOOD, "", "none"),
        ('It is not "positive"', MOOD, "", "none"),
        ("There is no evidence for it", YES_NO, "", "none"),
        ("Nobody knows", YES_NO, "", "none"),
        ("Yesterday", YES_NO, "", "none"),
        ("Answer: yes\nAnswer: no", YES_NO, "", "none"),
        ("positively", MOOD, "", "none"),
        ("a contradictory, neutrality-entailing text", NLI, "", "none"),
    ],
)
def test_labels(response: str, labels: tuple[str, ...], answer: str, rule: str) -> None:
    found = extract_label(response, labels)
    assert (found.text, found.rule) == (answer, rule)
    assert found.choice == (labels.index(answer) if answer else None)


ANIMALS = ("a dog", "a cat", "the horse.", "a dog and a cat")
NUMBERS = ("4", "4.5", "14", "")
LETTERS = ("A", "B", "C", "D")


@pytest.mark.parametrize(
    ("response", "options", "answer", "rule"),
    [
        ("B", ANIMALS, "B", "letter"),
        (" B.", ANIMALS, "B", "letter"),
        ("b", ANIMALS, "B", "letter"),
        ("a", ANIMALS, "A", "letter"),
        ("(c)", ANIMALS, "C", "letter"),
        ("c) the horse", ANIMALS, "C", "letter"),
        ("[D]", ANIMALS, "D", "letter"),
        ("**B**", ANIMALS, "B", "letter"),
        ("**B.** a cat", ANIMALS, "B", "letter"),
        ("'C'", ANIMALS, "C", "letter"),
        ("A: a dog", ANIMALS, "A", "letter"),
        ("A. dog", ANIMALS, "A", "letter"),
        ("B - a cat", ANIMALS, "B", "letter"),
        ("B, because cats purr", ANIMALS, "B", "letter"),
        ("C\nThe horse runs", ANIMALS, "C", "letter"),
        ("B is correct", ANIMALS, "B", "answer_is"),
        ("A is the right answer", ANIMALS, "A", "answer_is"),
        ("The answer is B", ANIMALS, "B", "answer_is"),
        ("The correct answer is (b).", ANIMALS, "B", "answer_is"),
        ("Answer: C", ANIMALS, "C", "answer_is"),
        ("**Answer:** D", ANIMALS, "D", "answer_is"),
        ("The right answer is option 'B'", ANIMALS, "B", "answer_is"),
        ("The answer is A", ANIMALS, "A", "answer_is"),
        ("The answer is A because dogs bark", ANIMALS, "A", "answer_is"),
        ("I would choose C.", ANIMALS, "C", "picked"),
        ("It must be option (B)", ANIMALS, "B", "concluded"),
        ("So $\\boxed{D}$", ANIMALS, "D", "boxed"),
        ("A dog", ANIMALS, "A", "option_text"),
        ("The answer is a dog", ANIMALS, "A", "answer_is"),
        ("A cat, surely", ANIMALS, "B", "option_text"),
        ("The horse", ANIMALS, "C", "option_text"),
        ("a dog and a cat", ANIMALS, "D", "option_text"),
        ("I see a cat there", ANIMALS, "B", "option_only"),
        ("It is a cat, not a dog", ANIMALS, "B", "option_only"),
        ("4.5", NUMBERS, "B", "option_text"),
        ("It equals 14", NUMBERS, "C", "option_only"),
        ("It is 4.5 in all", NUMBERS, "B", "option_only"),
        # nothing is decided
        ("", ANIMALS, "", "none"),
        ("?", NUMBERS, "", "none"),
        ("A bird", ANIMALS, "", "none"),
        ("A or B", ANIMALS, "", "none"),
        ("A, B or C", ANIMALS, "", "none"),
        ("E", ANIMALS, "", "none"),
        ("A. bird\nB. fish", ANIMALS, "", "none"),
        ("Option A is wrong", ANIMALS, "", "none"),
        ("B is not right", ANIMALS, "", "none"),
        ("The answer is not B", ANIMALS, "", "none"),
        ("Because", ANIMALS, "", "none"),
        ("I saw a dog, then a cat", ANIMALS, "", "none"),
        ("Vitamin C is healthy", ANIMALS, "", "none"),
        ("It is not a cat", ANIMALS, "", "none"),
        ("24.56", NUMBERS, "", "none"),
    ],
)
def test_letters(response: str, options: tuple[str, ...], answer: str, rule: str) -> None:
    found = extract_letter(response, LETTERS, options)
    assert (found.text, found.rule) == (answer, rule)
    assert found.choice == (LETTERS.index(answer) if answer else None)


@pytest.mark.parametrize(
    ("response", "answer", "rule"),
    [
        ("Paris", "Paris", "first_line"),
        ("\n  Paris.\nIt lies in France.", "Paris.", "first_line"),
        ('"Paris"', "Paris", "first_line"),
        ("**Paris**", "Paris", "first_line"),
        ("The answer is Paris", "Paris", "answer_is"),
        ("Answer: “Paris”", "Paris", "answer_is"),
        ("**Answer:** Paris", "Paris", "answer_is"),
        ("The correct answer is: Paris", "Paris", "answer_is"),
        ("Answer:\nParis", "Paris", "answer_is"),
        ("The answering machine", "The answering machine", "first_line"),
    ],
)
def test_short_answers(response: str, answer: str, rule: str) -> None:
    assert extract_short_answer(response) == Extraction(answer, rule)


@pytest.mark.parametrize("response", ["", " \n ", '""', "The answer is", "Answer: ''"])
def test_an_empty_short_answer_is_nothing(response: str) -> None:
    assert extract_short_answer(response) == NOTHING


def test_a_summary_is_the_whole_text() -> None:
    assert extract_text(" Two\nlines. ") == Extraction("Two\nlines.", "text")
    assert extract_text(" \n") == NOTHING
