"""Garbage in cycles is left alone when a process ends, and while much is made that stays."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import pytest

from cme_bench.util.collection import _frozen_by_others, rarely_collected, uncollected

PROGRAM = """
import gc, sys, weakref
from cme_bench.util.collection import uncollected_at_exit

class Link:
    def __del__(self):
        print("collected", file=sys.stderr)

gc.disable()
link = Link()
link.itself = link
weakref.finalize(sys.modules["weakref"].finalize, print, "finalized")
del link
"""


@pytest.mark.parametrize(
    ("last", "said"), [("", "finalized\ncollected\n"), ("uncollected_at_exit()", "finalized\n")]
)
def test_the_end_of_a_process_collects_nothing(last: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM + last], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == said


@pytest.mark.parametrize("last", ["this", "other"])
def test_the_search_is_on_again_after_the_last_thread_that_wants_none(last: str) -> None:
    within, leave = threading.Event(), threading.Event()

    def importing() -> None:
        with uncollected():
            within.set()
            leave.wait(10)

    other = threading.Thread(target=importing)
    assert gc.isenabled()
    with uncollected():
        other.start()
        assert within.wait(10)
        if last == "this":
            leave.set()
            other.join()
        assert not gc.isenabled()
    assert gc.isenabled() == (last == "this")
    leave.set()
    other.join()
    assert gc.isenabled()


def test_a_search_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with uncollected(), uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


STAYING = """
import gc
from cme_bench.util.collection import _frozen_by_others, rarely_collected, uncollected
with uncollected(staying=True):
    pass
seen = [gc.get_freeze_count()]
with rarely_collected():
    before = gc.get_freeze_count()
    with uncollected():
        made = [[[]] for _ in range(1000)]
    seen.append(gc.get_freeze_count() - before)
    with uncollected(staying=True):
        made += [[[]] for _ in range(1000)]
    seen.append(gc.get_freeze_count() - before >= len(made))
print(*seen, gc.get_freeze_count())
"""


def test_what_stays_is_left_alone_while_the_search_is_seldom() -> None:
    done = subprocess.run([sys.executable, "-c", STAYING], capture_output=True, text=True, check=True)
    assert done.stdout == "0 0 True 0\n"


def test_what_was_put_aside_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python walks through all of it, some 40 ms of a run."""
    counted: list[int] = []
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "get_freeze_count", lambda: counted.append(0) or 0)
    for name in ("freeze", "unfreeze"):
        monkeypatch.setattr(gc, name, lambda state=name == "freeze": frozen.append(state))
    _frozen_by_others.cache_clear()
    try:
        with rarely_collected(), rarely_collected(), uncollected(staying=True):
            assert frozen == [True]
        assert frozen == [True, True, False], "what was made meanwhile stays, too; the first gives it back"
        with rarely_collected():
            pass
        with uncollected(staying=True):
            pass
        assert frozen == [True, True, False, True, False]
        assert len(counted) == 1
    finally:
        _frozen_by_others.cache_clear()
