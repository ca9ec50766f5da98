"""Locks are held by one process, and end with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cme_bench.util.locks import locked, try_lock

HOLD = "import sys; from cme_bench.util.locks import try_lock; sys.exit(try_lock(open(sys.argv[1], 'a')))"


def test_another_process_does_not_get_a_lock_that_is_held(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(file)]
    with locked(file):
        assert subprocess.run(command, check=False).returncode == 0
    assert subprocess.run(command, check=False).returncode == 1
    with file.open("a") as stream:
        assert try_lock(stream)
