"""Rows that stay as they were read are those that ``datasets`` would give, and need none of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cme_bench.harness.process_docs import drop_unlabelled
from cme_bench.tasks import row_files
from cme_bench.tasks.plain_table import PlainTable, is_plain
from cme_bench.tasks.row_files import Rows, joined, read_jsonl
from tests.support.workshop import Workshop

ROWS: list[dict[str, Any]] = [
    {"label": 0, "q": "a", "choices": {"text": ["x", "y"], "key": "A"}},
    {"label": -1, "q": None, "choices": {"text": [], "key": "B"}},
    {"label": 2, "q": "c", "choices": {"text": ["z"], "key": "A"}},
]


def written(folder: Path, rows: list[dict[str, Any]]) -> Rows:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return read_jsonl(file)


SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=2)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.sampled_from("ab"), SCALARS, max_size=2)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from("xyz"), VALUES, min_size=1, max_size=3), min_size=1, max_size=3)
)
def test_plain_rows_are_what_a_table_of_datasets_gives_back(rows: list[dict[str, Any]]) -> None:
    keys = dict.fromkeys(key for row in rows for key in row)
    whole = [{key: row.get(key) for key in keys} for row in rows]
    if is_plain(whole):
        assert json.dumps(list(row_files._table(whole))) == json.dumps(whole)


@pytest.mark.parametrize(
    "values",
    [
        [1, 1.5],
        [1, True],
        [1, "1"],
        [["a"], "a"],
        [["a", None], []],
        [[["a"]], []],
        [{"a": 1}, {"b": 1}],
        [{"a": 1, "b": 2}, {"b": 1, "a": 2}],
        [{"a": {"b": 1}}, {"a": {"b": 2}}],
        [{}, {}],
    ],
)
def test_other_rows_are_not_plain(values: list[Any]) -> None:
    assert not is_plain([{"x": value} for value in values])


def test_it_answers_as_a_table_of_datasets(tmp_path: Path) -> None:
    rows = written(tmp_path, ROWS)
    table, real = rows.table, datasets.Dataset.from_list(ROWS)
    assert isinstance(table, PlainTable)
    assert len(table) == len(real)
    assert list(table) == list(real) == list(rows.each()) == ROWS
    assert [table[0], table[-1]] == [real[0], real[-1]]
    assert table[[2, 0]] == real[[2, 0]]
    assert table["label"] == real["label"][:]
    assert table.column_names == real.column_names == list(table.features)
    kept = [drop_unlabelled(each) for each in (table, real)]
    assert list(kept[0]) == list(kept[1]) == [ROWS[0], ROWS[2]]
    assert table._real is None
    assert isinstance(kept[0], PlainTable)
    assert dict(table.features) == real.features
    assert table[1:] == real[1:]
    assert list(table.map(lambda row: {"n": row["label"] + 1})) == [
        row | {"n": row["label"] + 1} for row in ROWS
    ]
    assert list(table.filter(lambda row: False, desc=None)) == []
    for wrong, error in ((3, IndexError), ("n", ValueError)):
        with pytest.raises(error):
            table[wrong]


def test_a_row_that_was_handed_out_is_a_copy(tmp_path: Path) -> None:
    table = written(tmp_path, ROWS).table
    for row in (table[0], next(iter(table))):
        row["q"] = "changed"
        row["choices"]["text"].append("more")
    table["choices"][0]["text"].append("more")
    assert table[0] == ROWS[0]


def test_files_together_and_large_ones_are_tables_of_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = written(tmp_path, ROWS)
    assert list(joined([rows, rows]).table) == ROWS * 2
    monkeypatch.setattr(row_files, "MOST_BYTES", 10)
    assert isinstance(written(tmp_path, ROWS).table, datasets.Dataset)


def test_code_of_a_task_is_given_a_table_of_datasets(workshop: Workshop) -> None:
    workshop.write_rows("test", [{"question": "q", "label": 1}])
    workshop.write_yaml()
    assert isinstance(workshop.build().docs, PlainTable)
    workshop.write_yaml(more="process_docs: !function own.same\n")
    (workshop.yaml.parent / "own.py").write_text("def same(rows):\n    return rows\n")
    assert isinstance(workshop.build(allow_code=True).docs, datasets.Dataset)


def test_tasks_of_json_lines_import_no_datasets() -> None:
    code = (
        "import sys\n"
        "from cme_bench.tasks.build import build_task\n"
        "from cme_bench.tasks.sources import mini_source\n"
        "from cme_bench.tasks.suite import load_suite\n"
        "suite = load_suite()\n"
        "tasks = [build_task(spec, suite, mini_source()) for spec in suite.select(['cme_ll'])]\n"
        "print(len({task.hash for task in tasks}), [m for m in ('datasets.features', 'pandas', 'pyarrow') "
        "if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "20 []\n", done.stderr
