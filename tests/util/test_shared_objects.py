"""torch's shared objects are loaded beside other imports, and torch works with them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cme_bench.cli import app
from cme_bench.util.shared_objects import load_early

PROGRAM = """
import sys
from cme_bench.util.shared_objects import load_early
thread = load_early()
thread.join()
loaded = open("/proc/self/maps").read()
print("libtorch_cpu.so" in loaded, "libtorch_python.so" in loaded, "torch" in sys.modules)
import torch
print((torch.ones(3) @ torch.ones(3)).item(), load_early())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="as on Linux")
def test_torch_is_loaded_before_it_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["True False False", "3.0 None"], done.stderr


ENDING = """
import sys, time
from cme_bench.util.shared_objects import load_early
load_early()
time.sleep(float(sys.argv[1]))
sys.exit(2)
"""


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1, 0.2])
def test_a_process_that_ends_meanwhile_ends_as_it_says(seconds: float) -> None:
    """What an object sets up must not be torn down at the same time."""
    command = [sys.executable, "-c", ENDING, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (2, "")


def test_nothing_is_loaded_where_torch_is_there_already() -> None:
    import torch  # noqa: F401

    assert load_early() is None


@pytest.mark.parametrize(("engine", "begins"), [("auto", 1), ("hf", 1), ("vllm", 1), ("server", 0)])
def test_a_run_begins_it_where_it_computes_itself(
    engine: str, begins: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    monkeypatch.setattr("cme_bench.cli.run.load_early", lambda: begun.append(1))
    monkeypatch.setattr("cme_bench.cli.run.check_ask", lambda options: None)
    monkeypatch.setattr("cme_bench.runs.runner.run", lambda options, listener: [])
    url = ["--server", "http://localhost:1"] if engine == "server" else []
    done = CliRunner().invoke(app, ["run", "smollm2", "--engine", engine, *url])
    assert (done.exit_code, len(begun)) == (0, begins), done.output
