"""The state is saved while work goes on, and once more however it ends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cme_bench.experiments.reproduce.saver import saved_meanwhile
from cme_bench.util.errors import CmeError


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cme_bench.experiments.reproduce.saver.SECONDS", 0.01)


def until(number: int, calls: list[float]) -> None:
    end = time.monotonic() + 20
    while len(calls) < number and time.monotonic() < end:
        time.sleep(0.005)


def test_it_is_saved_during_one_long_job_and_after_it(tmp_path: Path) -> None:
    calls: list[float] = []
    said: list[str] = []
    (tmp_path / "state").write_bytes(b"12345")

    def save() -> list[Path]:
        calls.append(time.monotonic())
        return [tmp_path / "state"]

    with pytest.raises(KeyboardInterrupt), saved_meanwhile(save, said.append):
        until(3, calls)
        ended = time.monotonic()
        raise KeyboardInterrupt
    assert len([moment for moment in calls if moment < ended]) >= 3
    assert calls[-1] > ended
    assert said == ["state: 1 files, 5 bytes"]


def test_what_cannot_be_saved_is_told_at_once_and_raised_at_the_end() -> None:
    calls: list[float] = []
    said: list[str] = []

    def save() -> list[Path]:
        calls.append(0.0)
        raise CmeError("no room")

    with pytest.raises(CmeError, match="no room"), saved_meanwhile(save, said.append):
        until(1, calls)
        while not said:
            time.sleep(0.005)
    assert said == ["the state is not saved: no room"]
    assert len(calls) == 2
