"""Rows that tell whether a model sees: chance, majority, the model without its images, and the paper's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cme_bench.reports.cells import FIXED, ComparisonTable
from cme_bench.reports.page.render import render_page
from cme_bench.reports.references import sight
from cme_bench.reports.runs import RunView
from cme_bench.reports.seeds import pool_seeds
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import render
from cme_bench.util.errors import UsageError
from tests.support.folders import ADAPTER, MadeTask, make_run

SEEING, BLIND = "other generated", "other blind generated"
Scores = dict[str, list[float]]


def share(right: int, n: int = 20) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


def run(folder: Path, seen: Scores, unseen: Scores, **changes: Any) -> RunView:
    """A run of image tasks with and without their images; each task is a dataset, but flags and flags2."""
    tasks = {}
    for form, ending, scores in ((SEEING, "", seen), (BLIND, "_blind", unseen)):
        for name, own in scores.items():
            tasks[f"{name}{ending}"] = MadeTask(
                own,
                f"multimodal{ending}",
                name.removesuffix("2"),
                form=form,
                planned={"random_baseline": 0.1, "majority_baseline": 0.3 if name == "digits" else 0.2},
            )
    return make_run(folder, tasks, **changes)


SEEN: Scores = {"digits": share(16), "flags": share(10), "flags2": share(6)}
UNSEEN: Scores = {"digits": share(2), "flags": share(10), "flags2": share(4)}


def cells(table: ComparisonTable, name: str) -> dict[str, float | None]:
    [row] = [row for row in (*table.rows, *table.references, *table.published) if row[0].text == name]
    return {column: cell.value for column, cell in zip(table.columns, row, strict=True)}


def test_chance_majority_and_the_blind_run_stand_below_in_the_same_columns(tmp_path: Path) -> None:
    [table] = comparison_tables([run(tmp_path / "one", SEEN, UNSEEN)])
    assert table.columns[len(FIXED) :] == ("digits", "flags", "average")
    assert table.caption == "Outside CME, generated: score in %, macro mean over 2 datasets"
    for name, digits, flags, average in (
        ("smollm2", 80, 40, 60),
        ("chance", 10, 10, 10),
        ("majority", 30, 20, 25),
        ("smollm2, without images", 10, 35, 22.5),
    ):
        found = cells(table, name)
        assert [found["digits"], found["flags"], found["average"]] == pytest.approx([digits, flags, average])
    assert "smollm2: its images add +37.50 (" in render([table], "md")
    for fmt, text in (("md", "| chance "), ("latex", "chance & "), ("html", ">chance<")):
        assert text in render([table], fmt)
    assert ",reference,chance," in render([table], "csv")


def test_references_are_never_the_best_of_a_column(tmp_path: Path) -> None:
    weak, strong = ({name: share(k) for name in SEEN} for k in (1, 2))
    runs = [run(tmp_path / "a", weak, UNSEEN), run(tmp_path / "b", strong, UNSEEN, adapter=ADAPTER)]
    [table] = comparison_tables(runs)
    assert [row[-1].best for row in table.rows] == [False, True]
    assert not any(cell.best or cell.dagger for row in table.references for cell in row)


def test_what_images_add_is_paired_by_item(tmp_path: Path) -> None:
    one = run(tmp_path / "one", {"digits": share(10)}, {"digits": share(10)[::-1]})
    assert (sight(one, SEEING) or "").startswith("+0.00 (-")
    seeds = [
        run(
            tmp_path / name,
            {"digits": share(10 + k)},
            {"digits": share(5)},
            adapter=ADAPTER | {"name": name},
            identity={"adapter": name},
        )
        for k, name in enumerate("xyz")
    ]
    [pooled] = pool_seeds(seeds)
    said = sight(pooled, SEEING) or ""
    assert said.startswith("+30.00 (+")
    assert (
        cells(comparison_tables([pooled])[0], "smollm2 + teamlora-32, 3 seeds, without images")["digits"]
        == 25
    )


def test_questions_of_one_image_are_one_draw(tmp_path: Path) -> None:
    seen, unseen = [1.0] * 10 + [0.0] * 10, [0.0] * 20

    def width(folder: str, pictures: int) -> float:
        digests = [[str(i * pictures // 20)] for i in range(20)]
        tasks = {
            "digits": MadeTask(seen, "multimodal", "digits", form=SEEING, images=digests),
            "digits_blind": MadeTask(unseen, "multimodal_blind", "digits", form=BLIND),
        }
        low, high = re.findall(r"[-+]\d+\.\d+", sight(make_run(tmp_path / folder, tasks), SEEING) or "")[1:]
        return float(high) - float(low)

    assert width("few", 4) > 1.5 * width("many", 20)


def test_other_items_without_images_are_a_table_of_their_own(tmp_path: Path) -> None:
    tables = comparison_tables([run(tmp_path / "one", SEEN, UNSEEN | {"digits": share(2, 10)})])
    assert [table.form for table in tables] == [SEEING, BLIND]
    assert not any("without" in row[0].text for row in tables[0].references)


def test_a_dataset_that_was_asked_blind_in_part_has_no_blind_score(tmp_path: Path) -> None:
    [table] = comparison_tables([run(tmp_path / "one", SEEN, {"digits": share(2), "flags": share(10)})])
    found = cells(table, "smollm2, without images")
    assert (found["digits"], found["flags"], found["average"]) == (10, None, None)
    assert not any("images add" in note for note in table.notes)


def test_columns_whose_tasks_were_all_asked_blind_have_their_row(tmp_path: Path) -> None:
    own = {
        "digits": MadeTask(share(10), "multimodal", "digits", form=SEEING),
        "mine": MadeTask(share(4), "own", "mine", form=SEEING),
        "digits_blind": MadeTask(share(2), "multimodal_blind", "digits", form=BLIND),
    }
    [table] = comparison_tables([make_run(tmp_path / "both", own)])
    found = cells(table, "smollm2, without images")
    assert (found["multimodal"], found["own"], found["average"]) == (10, None, None)


def test_seeds_of_which_one_was_not_asked_blind_are_not_pooled_in_silence(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / name, SEEN, unseen, adapter=ADAPTER | {"name": name}, identity={"adapter": name})
        for name, unseen in (("x", UNSEEN), ("y", {}))
    ]
    with pytest.raises(UsageError, match="tasks differ: digits_blind, flags2_blind, flags_blind not in all"):
        pool_seeds(runs)
    [pooled] = pool_seeds(runs, allow_mixed=True)
    assert list(pooled.results.forms) == [SEEING]


def test_chance_is_said_where_every_task_says_it_and_not_of_cme(tmp_path: Path) -> None:
    planned = {"random_baseline": 0.5}
    own = {
        "a": MadeTask(share(3), "own", "a", form=SEEING, planned=planned),
        "b": MadeTask(share(3), "own", "b", form=SEEING),
    }
    [table] = comparison_tables([make_run(tmp_path / "own", own)])
    assert not table.references
    [table] = comparison_tables([make_run(tmp_path / "cme", {"cme_a": MadeTask(share(3), planned=planned)})])
    assert not table.references


def test_the_papers_row_stands_beside_and_is_not_compared(tmp_path: Path) -> None:
    [table] = comparison_tables([run(tmp_path / "one", SEEN, UNSEEN)], paper=True)
    assert [row[-1].value for row in table.published] == [59.80, 60.44]
    assert all("paper, not comparable" in row[0].text for row in table.published)
    assert any(note.startswith("‡ paper, not comparable: another model") for note in table.notes)
    other = {"a": MadeTask(share(3), "own", "a", form=SEEING)}
    [table] = comparison_tables([make_run(tmp_path / "own", other)], paper=True)
    assert not table.published  # CME's averages say nothing of other tasks


def test_the_page_shows_them_beside_every_task(tmp_path: Path) -> None:
    page = render_page([run(tmp_path / "one", SEEN, UNSEEN)])
    head = page[page.index('class="sortable tasks"') :]
    for column in ("chance", "majority", "smollm2, without images"):
        assert f">{column}</button>" in head[: head.index("</thead>")]
    row = head[head.index('data-value="digits"') :]
    shown = [cell.partition("<")[0] for cell in row[: row.index("</tr>")].split('">')[1:]]
    assert shown[-5:-1] == ["80.00", "10.00", "30.00", "10.00"]
