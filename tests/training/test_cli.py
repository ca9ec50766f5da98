"""``cme-bench train`` as a user meets it: exit codes, one-line errors, and several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cme_bench.cli import app
from cme_bench.training.curve import read_curve
from cme_bench.training.options import method_names

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
SMALL = (
    "--data mini --datasets sst2,rte --rank 4 --max-length 256 --offline --dtype float32 --dropout 0".split()
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cme_bench", "train", *arguments]


def call(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False
    )


def test_help_names_every_method_and_imports_no_torch() -> None:
    shown = CliRunner().invoke(app, ["train", "--help"])
    assert shown.exit_code == 0
    assert all(method in shown.output for method in method_names())
    code = (
        "import sys; import cme_bench.cli; "
        "from cme_bench.training.options import check_options; assert 'torch' not in sys.modules"
    )
    assert call([sys.executable, "-c", code]).returncode == 0


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = call(command("smollm2", "--method", "temlora", "--out", str(tmp_path / "a")))
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("cme-bench: unknown method 'temlora'; did you mean 'teamlora'?")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_terminated_exits_with_3_and_the_same_command_goes_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    arguments = command(
        *(str(tiny_checkpoint), "--method", "teamlora", "--out", str(out), *SMALL),
        *("--max-steps", "150", "--log-every", "1"),
    )
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        deadline = time.monotonic() + 240
        while len(read_curve(out / "loss.csv")) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(60) == 3, said
    assert "the same command goes on there" in said
    steps = len(read_curve(out / "loss.csv"))
    done = call(arguments)
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {steps}/150" in done.stderr
    assert f"The adapter is in {out}" in done.stdout
    assert (out / "adapter_model.safetensors").exists()
