"""Packed runs: no texts, the same tables and comparisons, and every damage one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cme_bench
from cme_bench.reports.compare import compare_runs
from cme_bench.reports.compare_text import comparison_markdown
from cme_bench.reports.runs import RunView, open_run
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import render
from cme_bench.runs.folder import current_records
from cme_bench.runs.pack import main, pack_run
from cme_bench.runs.packed import PackedScores, packed_records, packed_task, scores_file
from cme_bench.runs.rescore import rescore
from cme_bench.scoring.record import Record, StoredResponse
from cme_bench.util.errors import UsageError
from cme_bench.util.files import write_json
from tests.support.folders import ADAPTER, MadeTask, make_run

ROOT = Path(__file__).resolve().parents[2]
N = 43  # no multiple of 8
DRAWN = np.random.default_rng(0)


def tasks(shift: int) -> dict[str, MadeTask]:
    right = [float((i * 7 + shift * (i % 5 == 0)) % 3 == 0) for i in range(N)]
    overlap = [i / 41 + shift / 100 for i in range(N)]
    return {"cme_a": MadeTask(right), "cme_b": MadeTask(overlap, domain="science", metric="rouge_l")}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunView, RunView]:
    """A base and an adapter, with records."""
    return make_run(tmp_path / "a", tasks(0)), make_run(tmp_path / "b", tasks(1), adapter=ADAPTER)


def packed(run: RunView) -> RunView:
    out = run.folder.with_name(f"{run.folder.name}-packed")
    pack_run(run.folder, out)
    return open_run(out)


def compared(a: RunView, b: RunView) -> str:
    return "\n".join(comparison_markdown(c, by="task", flips=0) for c in compare_runs(a, b))


def tabled(*views: RunView) -> str:
    return render(comparison_tables(views), "md")


def test_tables_and_comparisons_are_the_same(runs: tuple[RunView, RunView]) -> None:
    a, b = runs
    assert "McNemar" in compared(a, b) and "permutation" in compared(a, b)
    expected = tabled(a, b), compared(a, b)
    assert (tabled(packed(a), packed(b)), compared(open_run(a.folder.with_name("a-packed")), b)) == expected
    assert compared(a, open_run(b.folder.with_name("b-packed"))) == expected[1], "one of them is packed"
    items = cme_bench.load_runs(a.folder.with_name("a-packed"), items=True)
    assert items["value"].tolist() == cme_bench.load_runs(a.folder, items=True)["value"].tolist()


def test_nothing_of_an_items_text_is_left_and_little_else(runs: tuple[RunView, RunView]) -> None:
    folder = packed(runs[0]).folder
    assert {file.name for file in folder.iterdir()} == {"run.json", "results.json", "scores.json"}
    content = "".join(file.read_text() for file in folder.iterdir())
    assert "Question" not in content and "gold 1" not in content and "answer 1" not in content
    scores = json.loads((folder / "scores.json").read_text())["tasks"]
    assert len(scores["cme_a"]["scores"]["acc"]["bits"]) == 8, "43 items in 6 bytes"
    again = folder.with_name("again")
    pack_run(folder, again)
    assert (again / "scores.json").read_bytes() == (folder / "scores.json").read_bytes()


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 31])
def test_every_kind_of_value_comes_back(n: int, tmp_path: Path) -> None:
    kinds: dict[str, Callable[[int], Any]] = {
        "bits": lambda i: float(i % 3 == 0),
        "floats": lambda i: float(DRAWN.normal()),
        "pairs": lambda i: [i % 4, 1],
        "whole": lambda i: i,
        "some": lambda i: 1.0 if i % 2 else None,
    }
    scores = [{name: value(i) for name, value in kinds.items()} for i in range(n)]
    scores = [{name: value for name, value in row.items() if value is not None} for row in scores]
    records = [
        Record(
            id=3 * i, key="k", task="h", scores=row, response=StoredResponse(text="t"), target=f"t{i}",
            truncated=0, prompt="p", choices=[], doc={},
        )
        for i, row in enumerate(scores)
    ]  # fmt: skip
    write_json(scores_file(tmp_path), PackedScores(tasks={"t": packed_task(records, "h")}))
    found = packed_records(tmp_path, "t", [record.id for record in records])
    assert [(r.id, r.scores) for r in found] == [(r.id, r.scores) for r in records]


def test_other_right_answers_are_seen_packed_and_not(runs: tuple[RunView, RunView], tmp_path: Path) -> None:
    changed = tasks(1)
    for task in changed.values():
        task.targets = ["other" if i == 5 else f"gold {i}" for i in range(N)]
    other = make_run(tmp_path / "other", changed, adapter=ADAPTER)
    for a, b in ((runs[0], packed(other)), (packed(runs[0]), open_run(tmp_path / "other-packed"))):
        with pytest.raises(UsageError, match="gold answers differ in cme_a: 1 items"):
            compared(a, b)


def test_what_needs_texts_is_refused(runs: tuple[RunView, RunView]) -> None:
    folder = packed(runs[0]).folder
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UsageError, match="a packed run; its scores were kept, but no prompts"):
        rescore(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a task is missing": (lambda t: t.pop("cme_a"), "no scores of cme_a were kept"),
    "another version": (lambda t: t["cme_a"].update(hash="0" * 64), "scored under another version"),
    "fewer items": (lambda t: t["cme_a"].update(n=42), "has 42 items, run.json speaks of 43"),
    "no number": (lambda t: t["cme_a"].update(n="43"), "tasks: cme_a: n: must be a whole number"),
    "no base64": (lambda t: t["cme_a"].update(gold="a?"), "tasks: cme_a: gold: no base64"),
    "too few bytes": (lambda t: t["cme_a"].update(gold="AAAA"), "gold: 3 bytes, not 172"),
    "too few bits": (lambda t: t["cme_a"]["scores"]["acc"].update(bits="AAAA"), "bits: 3 bytes, not 6"),
    "nothing": (lambda t: t["cme_a"]["scores"]["acc"].clear(), "must be bits, float64 or 43 values"),
    "too few values": (
        lambda t: t["cme_a"]["scores"].update(acc={"values": [1.0]}),
        "must be bits, float64 or 43 values",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line_with_the_file(damage: str, runs: tuple[RunView, RunView]) -> None:
    view = packed(runs[0])
    file = view.folder / "scores.json"
    content = json.loads(file.read_text())
    change, message = DAMAGE[damage]
    change(content["tasks"])
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message) as error:
        compared(view, runs[1])
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_run_that_is_not_whole_is_refused(runs: tuple[RunView, RunView], tmp_path: Path) -> None:
    make_run(tmp_path / "open", tasks(0), finished=False)
    with pytest.raises(UsageError, match="not finished"):
        pack_run(tmp_path / "open", tmp_path / "to")
    (tmp_path / "b" / "samples" / "cme_b.jsonl").unlink()
    with pytest.raises(UsageError, match=r"cme_b\.jsonl: no such file"):
        pack_run(tmp_path / "b", tmp_path / "to")
    assert not (tmp_path / "to").exists()
    shutil.rmtree(tmp_path / "b" / "samples")
    pack_run(tmp_path / "b", tmp_path / "to")
    assert not (tmp_path / "to" / "scores.json").exists(), "records were not kept: no scores of items"
    for out in (tmp_path / "a", tmp_path / "a" / "run.json", tmp_path / "b"):
        with pytest.raises(UsageError):
            pack_run(tmp_path / "a", out)


def test_the_command_says_what_it_wrote(
    runs: tuple[RunView, RunView], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "a"), str(tmp_path / "to")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'to'}: ")
    assert main([str(tmp_path / "nothing"), str(tmp_path / "to")]) == 2
    assert main(["one"]) == 2
    assert "usage" in capsys.readouterr().err


COMMITTED = sorted(file.parent for file in (ROOT / "results").rglob("scores.json"))


def test_scores_of_items_are_committed() -> None:
    assert COMMITTED


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_committed_scores_of_items_have_the_means_beside_them(folder: Path) -> None:
    view = open_run(folder)
    for task, result in view.results.tasks.items():
        records = current_records(folder, task, view.run.tasks[task])
        for name, metric in result.metrics.items():
            values = [record.scores[name] for record in records if name in record.scores]
            assert len(values) == metric.n, (task, name)
            if metric.measure.aggregation == "mean" and all(isinstance(value, float) for value in values):
                assert metric.value == pytest.approx(np.mean(values)), (task, name)
