"""PEFT's own generic tests pass with our methods' configs, but for those that a list gives a reason for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.peft_suite.exceptions import EXCEPTIONS
from tests.support.peft_suite.plugin import MODULES
from tests.support.peft_suite.source import PACKAGE, NoSourceError, source_folder

EVERY = os.environ.get("PEFT_EVERY", "10")
"""One test in so many is run, other ones for each method; 1 runs them all (``make test-peft``)."""
_ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_peft_s_generic_tests(tmp_path: Path) -> None:
    try:
        folder = source_folder()
    except NoSourceError as err:
        pytest.skip(str(err))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.support.peft_suite.plugin"]
        + ["--peft-models", str(tmp_path), "--peft-every", EVERY, "--rootdir", str(folder), "-c", os.devnull]
        + ["-p", "no:cacheprovider", "-q", "-rfE", "--tb=short", "-W", "ignore"]
        + [f"{PACKAGE}/{module}" for module in MODULES],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    end = done.stdout[-8000:]
    assert done.returncode == 0, end + done.stderr[-2000:]
    assert "STALE" not in done.stdout, end
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|xfailed)", end)}
    assert counts["passed"] > 5 * counts["xfailed"] > 0
    print(end.splitlines()[-1])


def test_what_does_not_apply_has_a_reason_and_no_twin() -> None:
    seen = [(one.test, method) for one in EXCEPTIONS for method in one.methods]
    assert len(seen) == len(set(seen))
    assert all(one.reason and one.methods for one in EXCEPTIONS)
