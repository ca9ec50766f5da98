"""Runs of several adapters at the same time: turns, the longest row of all, and what one's failure does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cme_bench.runs.together import Company, run_together
from cme_bench.util.errors import CmeError, EngineDiedError, InterruptedRun
from cme_bench.util.turns import let_go


def agreeing(longest: int) -> Callable[[Company], int]:
    return lambda company: company.agree(longest)


def test_all_hear_of_the_longest_row_of_any() -> None:
    assert run_together([agreeing(n) for n in (3, 9, 5)], threading.Event()) == [9, 9, 9]
    assert run_together([agreeing(4)], threading.Event()) == [4]


def test_one_at_a_time_runs_but_for_places_where_it_lets_go() -> None:
    running: list[int] = []
    most: list[int] = []

    def work(company: Company) -> None:
        for _ in range(20):
            running.append(1)
            most.append(len(running))
            running.pop()
            with let_go():
                threading.Event().wait(0)

    run_together([work] * 4, threading.Event())
    assert max(most) == 1


def test_an_error_stops_the_others_and_is_raised_itself() -> None:
    stopping = threading.Event()

    def waits(company: Company) -> None:
        company.agree(1)

    def died(company: Company) -> None:
        company.fail()
        raise EngineDiedError("because of the other")

    def fails(company: Company) -> None:
        raise CmeError("the one that began it")

    with pytest.raises(CmeError, match="the one that began it"):
        run_together([waits, died, fails], stopping)
    assert stopping.is_set()


def test_a_stop_is_told_as_such() -> None:
    def stops(company: Company) -> None:
        raise InterruptedRun("stopped")

    with pytest.raises(InterruptedRun):
        run_together([stops, stops], threading.Event())


def test_without_company_there_are_no_threads() -> None:
    here = threading.current_thread()
    assert run_together([lambda company: threading.current_thread()], threading.Event()) == [here]
