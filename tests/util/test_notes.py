"""Long steps are not silent: a note at the beginning, and one every few seconds until the end."""

from __future__ import annotations

import threading

import pytest

from cme_bench.util.notes import noted


def test_a_long_step_is_heard_until_it_ends() -> None:
    heard: list[str] = []
    thrice = threading.Event()

    def note(message: str) -> None:
        heard.append(message)
        if len(heard) == 3:
            thrice.set()

    with noted(note, "make it", every=0.01):
        assert thrice.wait(30)
    count = len(heard)
    assert heard[:3] == ["make it", "make it: 0 s so far", "make it: 0 s so far"]
    assert not [thread for thread in threading.enumerate() if thread.name == "noted"]
    assert len(heard) == count


def test_a_step_that_fails_ends_its_notes() -> None:
    with pytest.raises(ValueError, match="broken"), noted(lambda _: None, "make it"):
        raise ValueError("broken")
    assert not [thread for thread in threading.enumerate() if thread.name == "noted"]
