"""Numbers in worked solutions: what is read, by which rule, and when two are the same."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cme_bench.scoring.numbers import extract_number, same_number


@pytest.mark.parametrize(
    ("response", "text", "rule"),
    [
        ("16 - 3 = 13\n#### 13\n\nProblem: 5 + 5?\n#### 10", "13", "hash_mark"),
        ("#### $1,234.50.", "1234.5", "hash_mark"),
        ("####-7", "-7", "hash_mark"),
        (r"so \boxed{3} or rather \boxed{\$42}", "42", "boxed"),
        ("The answer is 18 dollars. She has 3 left.", "18", "answer_is"),
        ("Answer: **7**", "7", "answer_is"),
        ("First 12, then 16-3 makes 13.", "13", "last_number"),
        ("16-3", "", "none"),
        ("it fell to -3 degrees", "-3", "last_number"),
        ("about 1,000,000 people", "1000000", "last_number"),
        ("7, 8 and 9", "", "none"),
        ("version 1.2.3", "", "none"),
        ("none at all", "", "none"),
        ("", "", "none"),
    ],
)
def test_what_is_read(response: str, text: str, rule: str) -> None:
    found = extract_number(response)
    assert (found.text, found.rule) == (text, rule)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("7.50", "7.5", 1.0),
        ("1,000", "1000", 1.0),
        ("$5", "5", 1.0),
        ("18", "18.0", 1.0),
        ("18", "81", 0.0),
        ("-3", "3", 0.0),
        ("", "", 0.0),
        ("five", "5", 0.0),
    ],
)
def test_when_two_are_the_same(a: str, b: str, same: float) -> None:
    assert same_number(a, b) == same


@given(st.integers(-(10**9), 10**9), st.integers(0, 3), st.integers(-(10**9), 10**9))
def test_equality_is_that_of_the_values(number: int, zeros: int, other: int) -> None:
    """A second reading, as fractions of what remains without thousands separators."""

    def value(text: str) -> Fraction:
        return Fraction(re.sub(",", "", text))

    text = f"{number:,}" + ("." + "0" * zeros if zeros else "")
    assert Fraction(extract_number(f"So it is {text}").text) == value(text)
    for reference in (str(number), f"{other:,}"):
        assert same_number(text, reference) == float(value(text) == value(reference))
