"""The notebook and the code on docs/python.md run as they stand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK, PAGE = ROOT / "examples" / "live_model.ipynb", ROOT / "docs" / "python.md"


def cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


def executed(parts: list[str], more: str, folder: Path) -> str:
    """Run the parts one after the other in a fresh process, as a notebook does; return what is printed."""
    code = "\n".join([*parts, more])
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def test_the_notebook_keeps_no_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    assert all(not cell.get("outputs") for cell in notebook["cells"])


@pytest.mark.slow
@pytest.mark.long
def test_the_notebook_trains_and_evaluates_the_live_model(tmp_path: Path) -> None:
    shown = executed(
        cells(),
        "print(len(scores), team._repr_html_().count('<table>'), cme_bench.table([plain, team]))",
        tmp_path,
    )
    assert "2 1 **CME, likelihood" in shown
    assert "smollm2 + default" in shown


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    shown = executed(blocks(), "print(team.name, plain.name)", tmp_path)
    assert "model" in shown and "+ default" in shown
