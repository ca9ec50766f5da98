"""Tables as pure functions of run folders: layout, marks, notes and refusals."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from cme_bench.errors import UsageError
from cme_bench.reports.runs import RunView, open_run
from cme_bench.reports.table import comparison_tables, latex_escape, render
from cme_bench.runs.store import write_json


def estimate(value: float, stderr: float | None = 0.01, n: int = 100) -> dict[str, Any]:
    return {"value": value, "stderr": stderr, "n": n}


def make_run(folder: Path, nli: float, science: float, **changes: Any) -> RunView:
    """A run folder with two domains and the given scores."""
    adapter = changes.pop("adapter", None)
    finished = changes.pop("finished", True)
    planned = {"hash": "f" * 64, "n": 100, "rows": 100, "prompt_format": "plain"} | changes.pop("task", {})
    identity = {
        "model": "a" * 64,
        "adapter": "none",
        "dtype": "float32",
        "engine": "hf",
        "data": "d",
    } | changes
    write_json(
        folder / "run.json",
        {
            "identity": identity,
            "model": {"name": folder.name, "parameters": 134_515_008},
            "adapter": adapter,
            "tasks": {"cme_a": planned, "cme_b": planned},
            "versions": {"cme-bench": "0.1.0", "torch": "2.13.0"},
            "finished": finished,
        },
    )
    task = {"form": "generated", "primary": "acc", "hash": planned["hash"], "metrics": {}}
    form = {
        "average": estimate((nli + science) / 2, 0.007, 200),
        "domains": {"science": estimate(science), "nli": estimate(nli)},
        "datasets": {},
    }
    cme = {"forms": {"generated": form}, "tasks": {"cme_a": task, "cme_b": task}}
    write_json(folder / "results.json", {"cme": cme})
    return open_run(folder)


ADAPTER = {"name": "t32", "method": "teamlora", "parameters": 3_651_840, "percent": 2.714}


@pytest.fixture
def runs(tmp_path: Path) -> list[RunView]:
    for name in ("base", "other_model"):
        (tmp_path / name).mkdir()
    return [
        make_run(tmp_path / "base", 0.5, 0.25),
        make_run(tmp_path / "other_model", 0.4, 0.45, adapter=ADAPTER),
    ]


GOLDEN = """\
**CME, generated: score in %, macro mean over 2 domains**

| model             | method   | params | added % | nli              | science          | average          |
| ----------------- | -------- | -----: | ------: | ---------------: | ---------------: | ---------------: |
| base              | base     | 134.5M | 0       | **50.00 ± 1.00** | 25.00 ± 1.00     | 37.50 ± 0.70     |
| other_model + t32 | teamlora | 138.2M | 2.71    | 40.00 ± 1.00     | **45.00 ± 1.00** | **42.50 ± 0.70** |
"""


def test_markdown_is_the_golden_one(runs: list[RunView]) -> None:
    (table,) = comparison_tables(runs)
    text = render(table, "md")
    assert text.startswith(GOLDEN)
    assert "documented reconstruction" in text
    assert "- base: model aaaaaaaa, hf float32, tasks" in text
    assert "50.00 |" in render(table, "md", with_se=False).replace("**", "")


def test_one_run_has_nothing_to_be_best_of(runs: list[RunView]) -> None:
    (table,) = comparison_tables(runs[:1])
    assert not any(cell.best for row in table.rows for cell in row)


def test_latex_escapes_and_marks(runs: list[RunView]) -> None:
    (table,) = comparison_tables(runs)
    text = render(table, "latex")
    assert r"other\_model + t32" in text
    assert r"\textbf{45.00}" in text
    assert r"added \%" in text
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert latex_escape("a_b%&{~") == r"a\_b\%\&\{\textasciitilde{}"


def test_csv_is_tidy(runs: list[RunView]) -> None:
    (table,) = comparison_tables(runs)
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert len(rows) == 6
    best = max((r for r in rows if r["column"] == "average"), key=lambda r: float(r["value"]))
    assert (best["method"], best["n"]) == ("teamlora", "200")
    assert float(best["value"]) == pytest.approx(42.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "bfloat16"}, "dtypes differ: bfloat16, float32"),
        ({"engine": "vllm"}, "engines differ: hf, vllm"),
        ({"data": "mini"}, "data sources differ"),
        ({"task": {"hash": "e" * 64}}, "task versions differ in cme_a, cme_b"),
        ({"task": {"n": 50}}, "item counts differ in cme_a, cme_b"),
        ({"task": {"prompt_format": "chat"}}, "prompt formats differ in cme_a, cme_b"),
    ],
)
def test_unlike_runs_are_refused_or_footnoted(
    runs: list[RunView], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "unlike").mkdir()
    unlike = make_run(tmp_path / "unlike", 0.1, 0.1, **changes)
    with pytest.raises(UsageError, match=message):
        comparison_tables([runs[0], unlike])
    (table,) = comparison_tables([runs[0], unlike], allow_mixed=True)
    assert any(note.startswith("MIXED:") and message in note for note in table.notes)


def test_limits_mini_items_and_unfinished_runs_are_watermarked(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    run = make_run(tmp_path / "r", 0.1, 0.1, task={"n": 40}, data="mini", finished=False)
    (table,) = comparison_tables([run])
    notes = "\n".join(table.notes)
    assert "LIMITED: only 40 items" in notes
    assert "LIMITED: 'mini'" in notes
    assert "UNFINISHED" in notes


def test_a_folder_without_results_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is .* a run folder"):
        open_run(tmp_path)
    write_json(tmp_path / "run.json", {})
    with pytest.raises(UsageError, match="no task of this run is finished"):
        open_run(tmp_path)
