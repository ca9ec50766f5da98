"""Mathematics: beyond the table of answers, what happens where the comparison would not end."""

from __future__ import annotations

import threading
import time

import pytest

from cme_bench.scoring import maths
from cme_bench.scoring.maths import extract_math, same_math


def test_the_comparison_works_in_any_thread() -> None:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(same_math(r"\sqrt{8}", r"2\sqrt{2}")))
    thread.start()
    thread.join()
    assert found == [1.0]


def test_one_that_takes_too_long_is_ended_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert same_math("x+1", "1+x") == 1.0  # the process runs now
    monkeypatch.setattr(maths, "LIMIT", 0.2)
    monkeypatch.setattr(maths, "_ENDLESS", maths.re.compile(r"(?!)"))
    started = time.monotonic()
    assert same_math("9^{9^{9^{9}}}", "9^{9^{9}}+1") == 0.0
    assert time.monotonic() - started < 10
    monkeypatch.undo()
    assert same_math("y+1", "1+y") == 1.0


def test_terms_without_end_are_compared_in_writing_alone() -> None:
    assert same_math("10^{10^{10}}", "10^{10^{10}}") == 1.0
    assert same_math("10^{10^{10}}", "10^{10^{9}} + 1") == 0.0
    assert same_math("(10000!)!", "1") == 0.0
    assert same_math("+".join(["x"] * 400), "400x") == 0.0


@pytest.mark.parametrize(
    "text", ["__import__('os').system('false')", "{", "\\frac{1}", "$", "x" * 5000, "\x00"]
)
def test_what_cannot_be_read_is_not_the_same(text: str) -> None:
    assert same_math(text, "x+1") == 0.0
    assert same_math("x+1", text) == 0.0
    extract_math(text)
