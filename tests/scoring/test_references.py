"""References are read more strictly than responses: what each is, and what is refused and why."""

from __future__ import annotations

from fractions import Fraction

import pytest

from cme_bench.scoring.references import (
    decimal_problem,
    read_number_reference,
    read_reference,
    reference_problem,
)


@pytest.mark.parametrize(
    ("reference", "value", "rule"),
    [
        ("42", 42, "number"),
        ("-3.5", Fraction(-7, 2), "number"),
        ("−3", -3, "number"),
        ("1,234", 1234, "number"),
        ("3,5", Fraction(7, 2), "number"),
        ("0,500", Fraction(1, 2), "number"),
        ("70 000", 70000, "number"),
        ("3/4", Fraction(3, 4), "number"),
        (r"\frac{3}{4}", Fraction(3, 4), "number"),
        ("$18.50", Fraction(37, 2), "number"),
        ("45%", 45, "number"),
        ("1e3", 1000, "number"),
        ("5 million", 5_000_000, "number"),
        ("16 - 3 = <<16-3=13>>13 eggs.\n#### 1,300", 1300, "hash_mark"),
        (r"So it is $\boxed{12}$.", 12, "boxed"),
        ("The answer is 12.", 12, "answer_is"),
        ("13 eggs", 13, "unit"),
        ("8 (apples)", 8, "unit"),
        ("12 km", 12, "unit"),
    ],
)
def test_numbers_that_are_read(reference: str, value: Fraction, rule: str) -> None:
    number, found = read_number_reference(reference)
    assert number is not None
    assert (number.value, found) == (value, rule)
    assert reference_problem("number", reference) is None


@pytest.mark.parametrize(
    "reference",
    [
        *(
            "3:30",
            "2024-01-15",
            "none",
            "N/A",
            "x = 5 or 6",
            "5 or 7",
            "3, 4",
            "(3, 4)",
            "1.2.3",
            "2x",
            "007",
        ),
        *(
            "about 42 or so, after 7 steps",
            "#### none",
            "16 - 3 = 13 eggs",
            r"\boxed{x}",
            "seven of nine",
            "5-7",
        ),
        *("16 = 13", r"\sqrt{2}", "3rd"),
    ],
)
def test_numbers_that_are_none_are_refused_with_a_way_out(reference: str) -> None:
    assert read_number_reference(reference) == (None, "none")
    problem = reference_problem("number", reference)
    assert problem is not None
    assert repr(reference) in problem
    assert "'short'" in problem


@pytest.mark.parametrize(
    ("kind", "reference", "problem"),
    [
        ("math", r"\frac{1}{2}", None),
        ("math", "(3, 4)", None),
        ("math", r"We add. So \boxed{x^2}.", None),
        ("math", "", "empty"),
        ("math", "First we add three to four and then we double the sum", "no expression"),
        ("math", r"\boxed{}", "no expression"),
        ("short", "C++", None),
        ("short", "?", None),
        ("short", " ", "empty"),
        ("summary", "今天", None),
        ("summary", "...", "no words"),
        ("number", "", "empty"),
    ],
)
def test_references_of_other_types(kind: str, reference: str, problem: str | None) -> None:
    found = reference_problem(kind, reference)
    assert (found is None) == (problem is None)
    assert problem is None or problem in str(found)
    assert (read_reference(kind, reference) is None) == (problem is not None)


@pytest.mark.parametrize(
    ("references", "problem"),
    [
        (["1,234", "5", "2.5"], None),
        (["0,5", "12,75"], None),
        (["0,5", "1,234"], "'1,234' may be thousands or decimals, as '0,5'"),
        (["0,5", "1.234"], "'1.234' may be thousands or decimals, as '0,5'"),
        (["0,5", "0.5"], "both as '0,5' and as '0.5'"),
        (["1.5", "1,234.5"], None),
        (["a,b 1,5\n#### 3", "#### 1,234"], None),
        ([], None),
    ],
)
def test_a_comma_that_can_be_read_in_two_ways(references: list[str], problem: str | None) -> None:
    found = decimal_problem(references)
    assert (found is None) == (problem is None)
    assert problem is None or problem in str(found)
    assert decimal_problem(references, "comma") is None


def test_the_task_says_what_a_comma_is() -> None:
    for decimal, value in (("comma", Fraction(1234, 1000)), ("point", 1234), (None, 1234)):
        number, _ = read_number_reference("1,234", decimal)  # type: ignore[arg-type]
        assert number is not None
        assert number.value == value
    number, _ = read_number_reference("1.234", "comma")
    assert number is not None
    assert number.value == 1234
