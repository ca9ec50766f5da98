"""``cme-bench lm-eval`` is lm-eval's command line, and its numbers are those of lm-eval's own model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cme_bench.authoring.export import export_tasks
from cme_bench.cli import app
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    export_tasks(load_suite().select("cme_rte_ll"), mini_source(), tmp_path / "tasks")
    return tmp_path / "tasks"


def call(*words: str) -> None:
    before = sys.argv
    try:
        app(["lm-eval", *words], standalone_mode=False)
    finally:
        sys.argv = before


def results(folder: Path) -> dict[str, Any]:
    [file] = folder.rglob("results_*.json")
    found: dict[str, Any] = json.loads(file.read_bytes())
    return found


@pytest.mark.slow
def test_it_agrees_with_the_stock_model(tiny_checkpoint: Path, tasks: Path, tmp_path: Path) -> None:
    for model in ("hf", "cme-hf"):
        call(
            *("--model", model, "--model_args", f"pretrained={tiny_checkpoint},dtype=float32"),
            *("--tasks", "cme_rte_ll", "--include_path", str(tasks), "--device", "cpu"),
            *("--limit", "6", "--log_samples", "--output_path", str(tmp_path / model)),
        )
    stock, ours = results(tmp_path / "hf"), results(tmp_path / "cme-hf")
    assert ours["config"]["model"] == "cme-hf"
    assert ours["results"]["cme_rte_ll"] == pytest.approx(stock["results"]["cme_rte_ll"], abs=1e-6)
    one, other = (
        [json.loads(line)["resps"] for line in next((tmp_path / m).rglob("samples_*")).open()]
        for m in ("hf", "cme-hf")
    )
    for a, b in zip(one, other, strict=True):
        assert [float(x[0][0]) for x in a] == pytest.approx([float(x[0][0]) for x in b], abs=1e-3)


def test_help_and_subcommands_are_lm_evals(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        call("run", "--help")
    assert stop.value.code == 0
    assert "usage: lm-eval run" in capsys.readouterr().out


@pytest.mark.slow
def test_what_lm_eval_refuses_is_one_line(tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=r"^lm-eval: Tasks not found: no_such_task$"):
        call("--model", "cme-hf", "--model_args", f"pretrained={tiny_checkpoint}", "--tasks", "no_such_task")
