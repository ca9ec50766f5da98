"""The commands over run folders: what they print, where they write, and how they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cme_bench.cli import app
from cme_bench.util.errors import UsageError
from tests.support.folders import ADAPTER, MadeTask, make_run


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    tasks = {
        "cme_a": MadeTask([1.0] * 30 + [0.0] * 30),
        "cme_b": MadeTask([0.25] * 20, "summarization", "b", "rouge_l"),
    }
    better = tasks | {"cme_a": MadeTask([1.0] * 45 + [0.0] * 15)}
    make_run(tmp_path / "base", tasks)
    make_run(tmp_path / "team", better, adapter=ADAPTER)
    return [str(tmp_path / "base"), str(tmp_path / "team")]


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_table(folders: list[str], tmp_path: Path) -> None:
    text = invoke("table", *folders, "--paper", "--no-se", "--n")
    assert "**75.00 (60)**" in text
    assert "‡" in text
    assert "†" not in invoke("table", *folders, "--no-tests")
    file = tmp_path / "table.tex"
    assert str(file) in invoke("table", *folders, "--format", "latex", "-o", str(file))
    assert r"\toprule" in file.read_text()


def test_compare(folders: list[str], tmp_path: Path) -> None:
    text = invoke(
        "compare", *folders, "--by", "task", "--flips", "2", "--flips-file", str(tmp_path / "flips.csv")
    )
    assert "**+25.00**" in text
    assert "- cme_a: B better on 15: 30, 31, ..." in text
    assert (tmp_path / "flips.csv").read_text().count("\n") == 16
    assert invoke("compare", *folders, "--format", "csv").startswith("form,kind,name,")
    with pytest.raises(UsageError, match="--by domian: one of domain, task; did you mean 'domain'"):
        invoke("compare", *folders, "--by", "domian")


def test_report_figures_and_card(folders: list[str], tmp_path: Path) -> None:
    assert "MiB" in invoke("report", *folders, "-o", str(tmp_path / "r.html"), "--title", "Mine")
    assert "<title>Mine</title>" in (tmp_path / "r.html").read_text()
    assert "figure5b_router: skipped" in invoke("figures", *folders, "-o", str(tmp_path / "new" / "figures"))
    assert (tmp_path / "new" / "figures" / "domains.pdf").exists()
    assert invoke("card", folders[1]).startswith("---\n")


def test_pooling_needs_seeds(folders: list[str]) -> None:
    with pytest.raises(UsageError, match="--pool-seeds: no two runs share"):
        invoke("table", *folders, "--pool-seeds")
