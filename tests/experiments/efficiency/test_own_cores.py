"""Cores of their own for an engine's processes."""

from __future__ import annotations

import os
import subprocess
import sys

from cme_bench.experiments.efficiency.own_cores import shared_out


def test_no_core_is_given_twice() -> None:
    shares = shared_out(range(3, 20), 2)
    given = [core for share in shares for cores in share for core in cores]
    assert len(given) == len(set(given)) == 16
    assert [(len(asking), len(computing)) for asking, computing in shares] == [(2, 6), (2, 6)]


def test_too_few_cores_are_not_shared_out() -> None:
    assert shared_out(range(7), 2) == []


def test_every_thread_of_a_process_stays_on_its_cores() -> None:
    """In a process of its own: what is said here holds for good."""
    core = min(os.sched_getaffinity(0))
    code = f"""
import os, threading
from cme_bench.experiments.efficiency.own_cores import stay_on
go, found = threading.Event(), []
thread = threading.Thread(target=lambda: (go.wait(), found.append(os.sched_getaffinity(0))))
thread.start()
stay_on(None, {{{core}}})
go.set()
thread.join()
assert found == [os.sched_getaffinity(0)] == [{{{core}}}]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
