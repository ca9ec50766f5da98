"""docs/quickstart.md, executed as a stranger would: an empty folder, its commands in their order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_server import Hub, Server, serving

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "quickstart.md"
TOKEN = "hf_" + "Qq7" * 11


def blocks() -> list[tuple[str, str]]:
    """The page's blocks in their order: language, and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def hub() -> Iterator[Server]:
    with serving() as server:
        server.hub = Hub(commits={"a" * 40: {}}, token=TOKEN)
        yield server


def stranger(home: Path, hub: Server) -> dict[str, str]:
    """An environment with nothing of this machine's user but the embedded model."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    return kept | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "TRACKIO_DIR": str(home / "trackio"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }


def called(line: str, folder: Path, environment: dict[str, str]) -> str:
    """What a line prints; ``cme-bench`` and ``trackio`` are those of this environment."""
    program, *typed = shlex.split(line, comments=True)
    words = [word for each in typed for word in (matched(each, folder) if "*" in each else [each])]
    known = {
        "cme-bench": [sys.executable, "-m", "cme_bench"],
        "trackio": [sys.executable, "-m", "trackio.cli"],
    }
    done = subprocess.run(
        [*known[program], *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def matched(pattern: str, folder: Path) -> list[str]:
    """The paths that a shell makes of a pattern."""
    return sorted(str(path.relative_to(folder)) for path in folder.glob(pattern))


@pytest.mark.slow
@pytest.mark.long
def test_the_page_runs(hub: Server, tmp_path: Path) -> None:
    folder, environment = tmp_path / "empty", stranger(tmp_path, hub)
    folder.mkdir()
    printed: dict[str, str] = {}
    for language, text in blocks():
        if language == "toml":
            (folder / text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
            continue
        for line in text.splitlines():
            if not line.startswith("pip install"):  # tests/test_packaging.py has the wheel
                printed[line] = called(line, folder, environment)
    [table] = [shown for line, shown in printed.items() if " table " in line]
    rows = [line for line in table.splitlines() if line.startswith("| smollm2")]
    assert [row.split("|")[1].strip() for row in rows] == [
        "smollm2",
        "smollm2 + lora",
        "smollm2 + team",
        "smollm2 + teamlora-demo",
    ]
    [entries] = [shown for line, shown in printed.items() if line.startswith("trackio")]
    for name in ("lora-", "team-", "teamlora-demo-"):
        assert name in entries
    stored = hub.hub.repos["models/your-name/team"]
    assert {"README.md", ".eval_results/cme-bench.yaml", "adapter_model.safetensors"} <= set(stored)
    assert (
        stored["adapter_model.safetensors"]
        == (folder / "adapters" / "team" / "adapter_model.safetensors").read_bytes()
    )
    assert not any(TOKEN in shown for shown in printed.values())
