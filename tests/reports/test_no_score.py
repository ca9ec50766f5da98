"""A task whose score is no finite number: its run stays readable, and every reader says what is missing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cme_bench import load_runs
from cme_bench.reports.card import model_card
from cme_bench.reports.compare import compare_runs
from cme_bench.reports.figures.inputs import FigureInputs
from cme_bench.reports.figures.run_rows import run_frame, runs_of
from cme_bench.reports.page.render import render_page
from cme_bench.reports.run_summary import summary_table, warnings
from cme_bench.reports.runs import RunView
from cme_bench.reports.seeds import pool_seeds
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import FORMATS, render
from cme_bench.runs.store import samples_file
from cme_bench.util.errors import UsageError
from tests.support.folders import ADAPTER, MadeTask, make_run


def made(folder: Path, value: float, *, adapter: bool = False) -> RunView:
    """A run of two tasks in two domains; the second one's score is ``value``, one of its items has none."""
    tasks = {
        "cme_a": MadeTask([1.0, 0.0, 1.0]),
        "cme_b": MadeTask([1.0, 0.0], "reading", "b", value=value),
    }
    named = {"adapter": folder.name.ljust(64, "0")} if adapter else {}
    run = make_run(folder, tasks, adapter=ADAPTER if adapter else None, identity=named)
    file = samples_file(folder, "cme_b")
    first, *others = file.read_text().splitlines()
    record = json.loads(first)
    record["scores"]["acc"] = None
    file.write_text("\n".join([json.dumps(record), *others, ""]))
    return run


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_other_task_is_read_and_the_mean_is_empty(tmp_path: Path, value: float) -> None:
    run = made(tmp_path / "run", value)
    assert run.results.unscored == ["cme_b"]
    form = run.results.forms["generated"]
    assert form.average is not None and form.average.value is None
    assert form.domains["nli"].value == pytest.approx(2 / 3)
    assert "cme_b: acc is no finite number" in " ".join(warnings(run.folder))
    summary_table(run.folder)
    frame = load_runs(run.folder)
    assert math.isnan(frame[frame["task"] == "cme_b"]["value"].iloc[0])


def test_a_table_leaves_the_cells_empty_and_says_why(tmp_path: Path) -> None:
    runs = [made(tmp_path / "run", math.nan), make_run(tmp_path / "whole", TASKS)]
    [table] = comparison_tables(runs)
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert cells["nli"].value is not None
    assert (cells["reading"].value, cells["reading"].text) == (None, "–")
    assert cells["average"].value is None
    notes = " ".join(table.notes)
    assert "NO SCORE: in" in notes and "the score of cme_b is no finite number" in notes
    assert "No significance tests: cme_b: 1 item has no number for acc" in notes
    for fmt in FORMATS:
        render([table], fmt)
    render_page(runs)
    assert run_frame(runs)["name"].nunique() == 1, "a run without a mean is no row of a figure"
    assert len(runs_of(FigureInputs(runs=runs))) == 1


TASKS = {"cme_a": MadeTask([1.0, 1.0, 1.0]), "cme_b": MadeTask([1.0, 1.0], "reading", "b")}


def test_a_comparison_leaves_the_task_out_with_a_word(tmp_path: Path) -> None:
    [found] = compare_runs(make_run(tmp_path / "whole", TASKS), made(tmp_path / "run", math.nan))
    assert [row.name for row in found.tasks] == ["cme_a"]
    assert any(n.startswith("LEFT OUT: cme_b: 1 item has no number for acc") for n in found.notes)
    assert any(n.startswith("NO SCORE") for n in found.notes)


def test_a_card_has_the_scores_that_are_there(tmp_path: Path) -> None:
    card = model_card(made(tmp_path / "run", math.nan))
    assert "cme_a" in card and "# no finite score: cme_b" in card
    assert "macro mean" not in card


def test_seeds_are_not_pooled_over_it(tmp_path: Path) -> None:
    runs = [made(tmp_path / name, math.nan, adapter=True) for name in ("s1", "s2")]
    with pytest.raises(
        UsageError, match=r"cme_b: 2 items have no number for acc; it cannot be tested item by item"
    ):
        pool_seeds(runs)
