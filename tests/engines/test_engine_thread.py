"""All that an engine computes happens in one thread, whoever asks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cme_bench.engines.vllm.engine_thread import EngineThread


def test_several_threads_have_their_work_done_in_one_of_its_own() -> None:
    thread = EngineThread()
    assert thread.call(threading.get_ident) == threading.get_ident()
    thread.begin()
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: thread.call(threading.get_ident), range(20)))
    thread.begin()
    found.add(thread.call(threading.get_ident))
    assert len(found) == 1
    assert threading.get_ident() not in found


def test_errors_arrive_where_the_work_was_asked_for() -> None:
    thread = EngineThread()
    thread.begin()
    with pytest.raises(ZeroDivisionError):
        thread.call(divmod, 1, 0)
    assert thread.call(divmod, 7, 2) == (3, 1)
