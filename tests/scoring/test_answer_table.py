"""Every row of the table of answers: what is read, by which rule, and what it scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from cme_bench.scoring.generation import ANSWER_TYPES, score_text
from tests.support.answer_table import Row, page_with, rows, scored_rows

GROUPS = sorted({(row.type, row.group) for row in rows()})


@pytest.mark.parametrize(("kind", "group"), GROUPS)
def test_what_is_read_and_by_which_rule(kind: str, group: str) -> None:
    wrong = []
    for row in rows():
        if (row.type, row.group) == (kind, group):
            found = row.read()
            if not row.is_read_right(found) or found.rule != row.rule:
                wrong.append(
                    f"{row.response!r}: {row.reading!r} by {row.rule}, not {found.text!r} by {found.rule}"
                )
    assert not wrong, "\n".join(wrong)


def test_a_choice_scores_where_it_is_the_right_one_and_nowhere_else() -> None:
    for row in rows():
        for choice in row.choices:
            acc = score_text(row.response, row.gold(choice)).scores["acc"]
            assert acc == float(choice == row.reading), (row.response, choice)


@pytest.mark.parametrize("row", scored_rows(), ids=lambda row: f"{row.response!r} {row.references!r}")
def test_numbers_and_texts_score_right(row: Row) -> None:
    assert row.scored() == row.scores


def test_the_table_has_rows_of_every_type_and_rows_that_no_rule_may_read() -> None:
    assert len(rows()) + len(scored_rows()) >= 300
    for kind in set(ANSWER_TYPES) - {"first_choice", "last_number"}:  # test_llm_adapters_rules.py
        mine = [row for row in rows() if row.type == kind]
        assert any(row.rule == "none" for row in mine), kind
        for rule in {row.rule for row in mine}:
            assert any(row.rule != rule for row in mine), (kind, rule)


def test_the_page_has_the_measured_precision_and_recall() -> None:
    page = (Path(__file__).parents[2] / "docs" / "answers.md").read_text(encoding="utf-8")
    assert page == page_with(page), "run `make docs`"
