"""Scores that are no shares, or better the lower: tables, tests, comparisons, pages and files follow."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest

from cme_bench.reports.card import model_card
from cme_bench.reports.cells import ComparisonTable
from cme_bench.reports.compare import Comparison, compare_runs
from cme_bench.reports.compare_text import comparison_markdown, comparisons_csv
from cme_bench.reports.frame import load_frame
from cme_bench.reports.page.render import render_page
from cme_bench.reports.run_summary import summary_table
from cme_bench.reports.runs import RunView
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import render
from cme_bench.scoring.scales import BITS, PERPLEXITY, POINTS, SHARE, Measure
from cme_bench.util.errors import UsageError
from tests.support.folders import MadeTask, make_run

LOWER = Measure(SHARE, "lower")
TER = Measure(POINTS, "lower", "mean")
PPL = Measure(PERPLEXITY, "lower", "perplexity")
OWN = Measure(BITS, "lower", "!function own")


def views(folder: Path) -> list[RunView]:
    """Run b makes fewer errors than a, in every measure."""
    source = np.random.default_rng(1)
    found = []
    for name, shift in (("a", 0.4), ("b", 0.0)):
        errors = [float(x) for x in np.clip(source.random(60) * 0.3 + shift, 0, 1)]
        lls = [-1.0 - 3 * e for e in errors]
        tasks = {
            "acc": MadeTask([1 - e for e in errors]),
            "wer": MadeTask(errors, metric="wer", measure=LOWER),
            "ter": MadeTask([100 * e for e in errors], metric="ter", measure=TER, domain="x"),
            "ter2": MadeTask([50 * e for e in errors], metric="ter", measure=TER, domain="y", dataset="z"),
            "ppl": MadeTask(lls, metric="ppl", measure=PPL, value=math.exp(-np.mean(lls))),
            "ppl2": MadeTask(lls, metric="ppl", measure=PPL, value=math.exp(-np.mean(lls))),
            "bits": MadeTask(lls, metric="bits", measure=OWN, value=2.5 + shift),
        }
        found.append(make_run(folder / name, tasks, name=name))
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunView]:
    return views(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def tables(runs: list[RunView]) -> dict[str, ComparisonTable]:
    return {table.form.removeprefix("other generated, "): table for table in comparison_tables(runs)}


def test_a_table_holds_one_kind(tables: dict[str, ComparisonTable]) -> None:
    assert {form: table.columns[6:] for form, table in tables.items()} == {
        "generated": ("nli", "average"),
        "share, lower is better": ("nli", "average"),
        "points, lower is better": ("x", "y", "average"),
        "perplexity, lower is better": ("ppl", "ppl2"),
        "bits, lower is better": ("bits",),
    }
    assert [table.caption.partition(": ")[2] for table in tables.values()] == [
        "score in %, macro mean over 1 domain",
        "score in %, macro mean over 1 domain",
        "score in points of 100, macro mean over 2 domains",
        "score (perplexity), 2 tasks, no mean",
        "score in bits, 1 tasks, no mean",
    ]


def test_the_best_is_at_the_right_end(tables: dict[str, ComparisonTable]) -> None:
    for form, table in tables.items():
        first, second = (row[6:] for row in table.rows)
        assert all(cell.best for cell in second), form
        assert not any(cell.best for cell in first), form
        assert not any(cell.dagger for cell in (*first, *second)), form
        for cell, other in zip(first, second, strict=True):
            assert (cell.value > other.value) == (form != "generated")  # type: ignore[operator]


def test_nothing_is_multiplied_twice(runs: list[RunView], tables: dict[str, ComparisonTable]) -> None:
    share, points = tables["share, lower is better"], tables["points, lower is better"]
    wer = runs[0].results.tasks["wer"].score.value
    assert share.rows[0][6].value == pytest.approx(100 * wer)
    assert points.rows[0][6].value == pytest.approx(100 * wer), "it is of 100 already"
    assert points.rows[0][8].value == pytest.approx(75 * wer)


@pytest.mark.parametrize("fmt", ["md", "latex", "html", "csv"])
def test_every_format_has_the_numbers(tables: dict[str, ComparisonTable], fmt: str) -> None:
    text = render(list(tables.values()), fmt)
    ppl = tables["perplexity, lower is better"].rows[0][6].value
    assert ppl is not None
    assert (str(ppl) if fmt == "csv" else f"{ppl:.4g}") in text
    if fmt == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert {
            (r["column"], r["scale"], r["better"]) for r in rows if r["form"].endswith("lower is better")
        } == {
            ("nli", "share", "lower"),
            ("average", "share", "lower"),
            *((c, "points", "lower") for c in ("x", "y", "average")),
            *((c, "perplexity", "lower") for c in ("ppl", "ppl2")),
            ("bits", "bits", "lower"),
        }


@pytest.fixture(scope="module")
def compared(runs: list[RunView]) -> dict[str, Comparison]:
    return {c.form.removeprefix("other generated, "): c for c in compare_runs(*runs)}


def test_compare_knows_who_is_better(compared: dict[str, Comparison]) -> None:
    for form, found in compared.items():
        for row in found.tasks:
            assert row.difference.wins > 50, (form, "b is better on nearly all items")
            assert (row.difference.value < 0) == (form != "generated")
            assert row.p < 0.01
        assert all(flip.gain > 0 for flip in found.flips if flip.id not in (0,)) or form == "generated"
    ppl = compared["perplexity, lower is better"]
    assert ppl.average is None
    assert [row.name for row in ppl.domains] == ["ppl", "ppl2"]
    assert ppl.tasks[0].test == "permutation (1000)"


def test_the_bootstrap_of_a_perplexity_is_that_of_its_mean(compared: dict[str, Comparison]) -> None:
    """By the delta method the error of exp(-m) is exp(-m) times that of m."""
    row = compared["perplexity, lower is better"].tasks[0]
    assert row.b == pytest.approx(row.a + row.difference.value)
    assert 0 < row.difference.stderr < abs(row.difference.value)
    assert row.difference.low < row.difference.value < row.difference.high < 0


def test_a_form_that_cannot_be_tested_is_named(compared: dict[str, Comparison]) -> None:
    assert "bits, lower is better" not in compared
    [note] = [note for note in compared["generated"].notes if note.startswith("LEFT OUT")]
    assert "bits: bits is no mean over items" in note


def test_compare_says_what_the_sign_means(compared: dict[str, Comparison]) -> None:
    texts = {form: comparison_markdown(found) for form, found in compared.items()}
    assert "B − A in points, paired" in texts["generated"]
    assert "B − A in points, less is better, paired" in texts["share, lower is better"]
    assert "B − A in points of 100, less is better" in texts["points, lower is better"]
    assert "A better" not in texts["share, lower is better"].replace("A better on 0", "")
    rows = list(csv.DictReader(io.StringIO(comparisons_csv(list(compared.values())))))
    assert {(r["scale"], r["better"]) for r in rows if r["name"] == "ter"} == {("points", "lower")}


def test_an_aggregation_of_ones_own_is_not_tested(tmp_path: Path) -> None:
    def made(folder: str, shift: float) -> RunView:
        tasks = {
            "own": MadeTask([0.1, 0.2], metric="f", measure=Measure(SHARE, "higher", "!function own")),
            "acc": MadeTask([1.0, shift]),
        }
        return make_run(tmp_path / folder, tasks, name=folder)

    one, two = made("one", 0.0), made("two", 1.0)
    [found] = compare_runs(one, two)
    assert [row.name for row in found.tasks] == ["acc"]
    assert any(note.startswith("LEFT OUT: own: f is no mean over items") for note in found.notes)
    [table] = comparison_tables([one, two])
    assert any("no mean over items" in note for note in table.notes)
    only = make_run(
        tmp_path / "only",
        {"own": MadeTask([0.1], metric="f", measure=Measure(SHARE, "higher", "!function own"))},
    )
    with pytest.raises(UsageError, match="its aggregation is code of the task file"):
        compare_runs(only, only)


def test_page_card_frame_and_summary(runs: list[RunView]) -> None:
    page = render_page(runs)
    ppl = runs[0].results.tasks["ppl"].score.value
    assert f"{ppl:.4g}" in page and f"{100 * ppl:.2f}" not in page
    assert "(less is better)" in page
    card = model_card(runs[0])
    assert "ter (points of 100, lower is better, SE" in card
    assert f"value: {round(ppl, 4)}" in card
    frame = load_frame([run.folder for run in runs], items=False)
    assert set(zip(frame["task"], frame["scale"], frame["better"], strict=True)) >= {
        ("wer", "share", "lower")
    }
    table = summary_table(runs[0].folder)
    assert f"{ppl:.4g}" in [str(cell) for cell in table.columns[3].cells]


def test_no_direction_no_marks(tmp_path: Path) -> None:
    raw = Measure(POINTS, "unknown")
    made = [
        make_run(tmp_path / name, {"t": MadeTask([score] * 3, metric="s", measure=raw)}, name=name)
        for name, score in (("a", 1.0), ("b", 2.0))
    ]
    [table] = comparison_tables(made)
    assert not any(cell.best or cell.dagger for row in table.rows for cell in row)
    assert any(note.startswith("No marks") for note in table.notes)
    [found] = compare_runs(*made)
    assert "which sign is better is unknown" in comparison_markdown(found)
