"""What a shell completes, and --version."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cme_bench


def called(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cme_bench", *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_version_is_said() -> None:
    done = called("--version")
    assert (done.returncode, done.stdout) == (0, f"cme-bench {cme_bench.__version__}\n")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("cme-bench tas", ["tasks"]),
        ("cme-bench run m --engine ", ["auto", "hf", "vllm", "ray", "server"]),
        ("cme-bench run m --engine r", ["ray"]),
        ("cme-bench run m --quan", ["--quantize"]),
        ("cme-bench tasks sh", ["show"]),
    ],
)
def test_bash_completes_through_the_shown_script(typed: str, offered: list[str], tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    command = tmp_path / "cme-bench"
    command.write_text(f"#!{sys.executable}\nfrom cme_bench.cli import main\nmain()\n")
    command.chmod(0o755)
    words = typed.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        f'eval "$({command} --show-completion bash)"\n'
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n"
        "_cme_bench_completion cme-bench\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    done = subprocess.run([bash, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == offered, done.stderr
