"""Seconds are counted once, for the innermost phase of the main thread; other threads' work stands beside."""

from __future__ import annotations

import threading
import time

import pytest

from cme_bench.util import phases
from cme_bench.util.phases import Phases


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that phases see."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_phase_within_a_phase_counts_for_itself(clock: list[float]) -> None:
    phase = Phases(before=2.0)
    clock[0] += 1
    with phase("answers"):
        clock[0] += 3
        with phase("records"):
            clock[0] += 5
        clock[0] += 7
    clock[0] += 11
    with pytest.raises(ValueError, match="broken"), phase("answers"):
        clock[0] += 13
        raise ValueError("broken")
    mine, beside = phase.seconds()
    assert list(mine.items()) == [("start", 3.0), ("answers", 23.0), ("records", 5.0), ("other", 11.0)]
    assert beside == {}


def test_other_threads_stand_beside(clock: list[float]) -> None:
    phase = Phases()

    def work() -> None:
        with phase("weights"):
            clock[0] += 4

    with phase("prompts"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    mine, beside = phase.seconds()
    assert (mine["prompts"], beside) == (4.0, {"weights": 4.0})


def test_the_age_of_a_process_is_known_or_nothing() -> None:
    assert 0 <= phases._age() < phases._LONGEST_START


def test_what_went_by_since_a_moment(clock: list[float]) -> None:
    phase = Phases()
    with phase("rows"):
        clock[0] += 2
    before = phase.seconds()
    with phase("rows"):
        clock[0] += 3
    with phase("steps"):
        clock[0] += 5
    mine, _ = phase.since(before)
    assert mine == {"start": 0.0, "rows": 3.0, "steps": 5.0, "other": 0.0}
