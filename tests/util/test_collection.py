"""Garbage in cycles is left alone when a process ends; what is to be done at its end is done."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
