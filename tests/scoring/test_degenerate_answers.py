"""Responses of a model that went astray: brackets or signs without end are no answer, and end in time."""

from __future__ import annotations

import time

import pytest

from cme_bench.scoring.extraction import extract_label, extract_letter, extract_short_answer
from cme_bench.scoring.numbers import extract_number


@pytest.mark.parametrize(
    "piece",
    ["[", "{", '{"answer": ', "<s>", "😀 ", "maybe, "],
    ids=["list", "brace", "json", "s", "emoji", "hedge"],
)
def test_a_piece_without_end_is_no_answer(piece: str) -> None:
    response = piece * 1500
    started = time.process_time()
    assert extract_letter(response, "ABCD", ("mitosis", "meiosis", "fission", "budding")).choice is None
    assert extract_label(response, ("yes", "no")).choice is None
    assert extract_number(response).text == ""
    extract_short_answer(response)
    assert time.process_time() - started < 60
