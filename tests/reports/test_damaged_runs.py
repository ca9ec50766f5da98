"""Run folders damaged in any way: a result or one line that says what is wrong, never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cme_bench import load_runs
from cme_bench.experiments.contaminated_run import check_run
from cme_bench.reports.card import model_card
from cme_bench.reports.compare import compare_runs
from cme_bench.reports.compare_text import comparison_markdown
from cme_bench.reports.engine_stats import stats_lines
from cme_bench.reports.page.render import render_page
from cme_bench.reports.run_summary import summary_table, warnings
from cme_bench.reports.runs import open_run
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import FORMATS, render
from cme_bench.runs.options import RunOptions
from cme_bench.runs.rescore import rescore
from cme_bench.runs.runner import run
from cme_bench.util.errors import CmeError
from tests.support.folders import ADAPTER, MadeTask, make_run
from tests.support.mutations import VALUES, damaged, mutated

FUZZ = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TASKS = {
    "cme_a": MadeTask([1.0, 0.0, 1.0], texts=["yes", "", "no"]),
    "cme_b": MadeTask([0.25, 0.5], "summarization", "b", "rouge_l"),
}


def tables(folder: Path, whole: Path) -> None:
    runs = [open_run(folder), open_run(whole)]
    for fmt in FORMATS:
        render(comparison_tables(runs, allow_mixed=True, paper=True), fmt, with_n=True)


def compare(folder: Path, whole: Path) -> None:
    for comparison in compare_runs(open_run(folder), open_run(whole), allow_mixed=True):
        comparison_markdown(comparison, by="task")


def page(folder: Path, whole: Path) -> None:
    render_page([open_run(folder), open_run(whole)], allow_mixed=True)


def small_reports(folder: Path, whole: Path) -> None:
    summary_table(folder)
    list(warnings(folder))
    list(stats_lines(folder))
    model_card(open_run(folder))
    load_runs(folder)
    load_runs(folder, items=True)
    check_run(folder, ["some text"], training="none")


def rescored(folder: Path, whole: Path) -> None:
    rescore(folder)


READERS = (tables, compare, page, small_reports, rescored)


def read(reader: Callable[[Path, Path], None], folder: Path, whole: Path) -> None:
    """A result, or an error of ours in one line."""
    try:
        reader(folder, whole)
    except CmeError as err:
        assert str(err)
        assert "\n" not in str(err)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return make_run(tmp_path / "whole", TASKS).folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", TASKS, adapter=ADAPTER).folder


@pytest.mark.parametrize("name", ["run.json", "results.json", "samples/cme_a.jsonl"])
@pytest.mark.parametrize("reader", READERS)
def test_other_values_are_a_result_or_one_line(
    folder: Path, whole: Path, reader: Callable[[Path, Path], None], name: str
) -> None:
    file = folder / name
    lines = file.read_text().splitlines() if name.endswith("jsonl") else [file.read_text()]
    first = json.loads(lines[0])

    @FUZZ
    @given(mutated(first) | VALUES)
    def holds(value: Any) -> None:
        file.write_text("\n".join([json.dumps(value), *lines[1:], ""]))
        read(reader, folder, whole)

    holds()


@pytest.mark.parametrize("name", ["run.json", "results.json", "samples/cme_a.jsonl"])
def test_other_bytes_are_a_result_or_one_line(folder: Path, whole: Path, name: str) -> None:
    file = folder / name
    original = file.read_bytes()

    @FUZZ
    @given(damaged(original) | st.binary(max_size=40), st.sampled_from(READERS))
    def holds(content: bytes, reader: Callable[[Path, Path], None]) -> None:
        file.write_bytes(content)
        read(reader, folder, whole)

    holds()


def test_a_damaged_folder_is_resumed_or_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    asked = RunOptions(
        model=str(tiny_checkpoint), tasks="cme_rte_ll", data="mini", out=tmp_path / "r", limit=3
    )
    run(asked)
    results = (tmp_path / "r" / "results.json").read_bytes()
    shutil.copytree(tmp_path / "r", tmp_path / "kept")
    names = ("run.json", "results.json", "samples/cme_rte_ll.jsonl", "summary.csv")

    @settings(FUZZ, max_examples=15)
    @given(st.sampled_from(names), st.data())
    def holds(name: str, data: st.DataObject) -> None:
        shutil.copytree(tmp_path / "kept", tmp_path / "r", dirs_exist_ok=True)
        file = tmp_path / "r" / name
        original = file.read_bytes()
        if name.endswith("json") and data.draw(st.booleans()):
            file.write_text(json.dumps(data.draw(mutated(json.loads(original)))))
        else:
            file.write_bytes(data.draw(damaged(original)))
        try:
            run(asked)
        except CmeError as err:
            assert "\n" not in str(err)
            return
        if name != "samples/cme_rte_ll.jsonl":  # a changed score or answer cannot be told from another one
            assert (tmp_path / "r" / "results.json").read_bytes() == results

    holds()
