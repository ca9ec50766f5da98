"""The benchmarks that inject faults, in their short form: nothing may be lost, doubled or wrong."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def lines(script: str) -> list[Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_every_fault_once() -> None:
    rows = lines("faults.py")
    assert len(rows) >= 11
    for row in rows:
        assert (row["injected"], row["lost"], row["duplicated"], row["wrong"]) == (1, 0, 0, 0), row


@pytest.mark.slow
def test_a_short_soak() -> None:
    [line] = lines("soak.py")
    metrics = line["metrics"]
    assert (metrics["lost"], metrics["duplicated"], metrics["wrong"]) == (0, 0, 0)
    assert metrics["compared"] == 2000


@pytest.mark.parametrize(
    ("bench", "stored", "page"),
    [
        ("faults", "faults.json", "reliability.md"),
        ("scaling_limits", "scaling_limits-cpu-2x-x86_64.json", "scaling.md"),
        ("scaling", "scaling-cpu-2x-x86_64.json", "results.md"),
    ],
)
def test_the_page_shows_what_was_measured(
    bench: str, stored: str, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    table = importlib.import_module(bench).table
    results = json.loads((ROOT / "results" / "bench" / stored).read_text())
    assert table(results) in (ROOT / "docs" / page).read_text(encoding="utf-8")


def test_a_sweep_s_speed_counts_the_time_of_every_crew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two adapters together, then a third: 100 tokens a step each, a step a second, logged every second."""
    from cme_bench.training.curve import LossCurve, Point

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = importlib.import_module("sweep")
    for name, first in (("a", 3.0), ("b", 3.0), ("c", 7.0)):
        (tmp_path / name).mkdir()
        points = [Point(s, 100 * s, s, 1.0, 0.1, 0.0, first + (s - 1) // 2 * 2) for s in range(1, 7)]
        LossCurve(tmp_path / name / "loss.csv", last_step=0).add(points)
    assert bench.steady(tmp_path, ["a", "b"]) == pytest.approx(200)
    assert bench.steady(tmp_path, ["a", "b", "c"]) == pytest.approx(150)
