"""Work that begins before it is wanted: done once, its failure raised where the result is."""

from __future__ import annotations

import threading

import pytest

from cme_bench.util.early import Early


def test_the_work_is_done_in_another_thread_and_once() -> None:
    threads: list[threading.Thread] = []

    def work() -> int:
        threads.append(threading.current_thread())
        return 7

    early = Early(work)
    assert [early.result(), early.result()] == [7, 7]
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_fails_is_raised_with_the_result(kind: type[BaseException]) -> None:
    def work() -> None:
        raise kind("lost")

    early = Early(work)
    for _ in range(2):
        with pytest.raises(kind, match="lost"):
            early.result()
