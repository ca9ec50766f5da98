"""Rows beside a task file have the values that lm-eval reads from the same file, by its own loader."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from lm_eval.tasks import TaskManager, get_task_dict

from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import render_item
from cme_bench.tasks.build import build_task
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.stored_rows import undecoded
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError

PLAIN = resolve_format("plain", None, generated=False)
TASK = """
task: t
dataset_path: {kind}
dataset_kwargs: {{data_files: {{test: {name}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}: {shown}"
doc_to_target: "{target}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
metric_list: [{{metric: exact_match}}]
"""


def write(folder: Path, content: bytes, *, name: str, shown: str = "{{x}}", target: str = "{{x}}") -> Path:
    kind = {"jsonl": "json", "json": "json", "csv": "csv", "parquet": "parquet"}[name.rpartition(".")[2]]
    (folder / name).write_bytes(content)
    text = TASK.format(kind=kind, name=name, shown=shown, target=target)
    (folder / "t.yaml").write_text(text)
    return folder


def ours(folder: Path) -> list[tuple[Any, Any]]:
    suite = load_suite((folder,))
    task = build_task(suite.task("t"), suite, mini_source())
    items = [render_item(task, index, PLAIN) for index in range(len(task.docs))]
    return [(item.instances[0].args, task.lm_eval.doc_to_target(item.doc)) for item in items]


def theirs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    monkeypatch.chdir(folder)  # lm-eval looks for data files there
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    task = get_task_dict(["t"], manager)["t"]
    found = []
    for doc in task.eval_docs:
        request = task.construct_requests(doc=doc, ctx=task.fewshot_context(doc, 0), metadata=("t", 0, 1))
        found.append((request.args, task.doc_to_target(doc)))
    return found


def lines(values: Sequence[Any]) -> bytes:
    return "".join(json.dumps({"q": f"q{i}", "x": value}) + "\n" for i, value in enumerate(values)).encode()


SHOWN = "{% for k, v in x.items() %}{{k}}={{v}} {% endfor %}"
JSON: Mapping[str, tuple[bytes, str]] = {
    "dates": (lines(["2020-01-01", "2021-02-03"]), "{{x}}"),
    "times": (lines(["2020-01-01T10:00:00", None]), "{{x}}"),
    "some dates": (lines(["2020-01-01", "none"]), "{{x}}"),
    "dates in lists": (lines([["2020-01-01"], ["2021-02-03"]]), "{{x}}"),
    "integers beyond 64 bits": (lines([10**20, 10**20 + 1]), "{{x}}"),
    "mappings of other keys": (lines([{"A": "1"}, {"A": "1", "B": "2"}]), SHOWN),
    "mappings of the same keys": (lines([{"A": "1", "B": "3"}, {"B": "2", "A": None}]), SHOWN),
    "lists of mappings": (lines([[{"t": "a", "n": 1}, {"t": "b"}]] * 2), "{{x}}"),
    "nothing there": (b'{"q": "q", "x": NaN}\n{"q": "q", "x": 1.5}\n', "{{x}}"),
    "texts that write lists": (lines(["['a', 'b']", "[1]"]), "{{x}}"),
    "plain values": (lines([1, 2]), "{{x}}"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_lines(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, shown = JSON[name]
    write(tmp_path, content, name="rows.jsonl", shown=shown)
    assert ours(tmp_path) == theirs(tmp_path, monkeypatch)


def test_decimals_of_an_array_are_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"q": "q", "x": 0.12345678901234567}, {"q": "q", "x": 1e-12}]
    write(tmp_path, json.dumps(rows).encode(), name="rows.json")
    assert ours(tmp_path) == theirs(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "values",
    [
        pyarrow.array([2**63 + 5, 1], pyarrow.uint64()),
        pyarrow.array([1577872800123456789, None], pyarrow.timestamp("ns")),
        pyarrow.array([1577872800123456789, None], pyarrow.timestamp("ns", "UTC")),
        pyarrow.array([datetime.datetime(2020, 1, 1), None]),
    ],
    ids=["uint64", "nanoseconds", "nanoseconds of a zone", "microseconds"],
)
def test_parquet(values: pyarrow.Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"q": ["a", "b"], "x": values}), tmp_path / "rows.parquet")
    write(tmp_path, (tmp_path / "rows.parquet").read_bytes(), name="rows.parquet")
    assert ours(tmp_path) == theirs(tmp_path, monkeypatch)


def test_an_answer_that_is_scored_here_stays_as_it_is_written(tmp_path: Path) -> None:
    more = "metadata: {answer: {type: short}}\n"
    write(tmp_path, lines(["2020-01-01", "2021-02-03"]), name="rows.jsonl")
    text = (tmp_path / "t.yaml").read_text().replace("metric_list: [{metric: exact_match}]\n", more)
    (tmp_path / "t.yaml").write_text(text)
    assert [target for _, target in ours(tmp_path)] == ["2020-01-01", "2021-02-03"]


def test_a_csv_with_larger_integers_is_refused(tmp_path: Path) -> None:
    write(tmp_path, b"q,x\na,1%030d\n" % 0, name="rows.csv")
    with pytest.raises(UsageError, match="holds an integer beyond 64 bits"):
        ours(tmp_path)


def test_an_empty_stop_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, lines(["a", "b"]), name="rows.jsonl")
    text = (tmp_path / "t.yaml").read_text().replace('until: ["\\n"]', 'until: [""]')
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UsageError, match="an empty text in 'until'"):
        load_suite((tmp_path / "t.yaml",))


def test_a_metric_without_a_value_is_refused(tmp_path: Path) -> None:
    """lm-eval gives None to the task's own aggregation; a store of JSON has one word for it and for NaN."""
    write(tmp_path, lines(["a", "b"]), name="rows.jsonl")
    (tmp_path / "code.py").write_text(
        "def results(doc, answers):\n    return {'n': None if doc['x'] == 'b' else 1.0}\n"
        "def share(values):\n    return sum(v is not None for v in values) / len(values)\n"
    )
    own = "process_results: !function code.results\n"
    own += "metric_list: [{metric: n, aggregation: !function code.share}]"
    text = (tmp_path / "t.yaml").read_text().replace("metric_list: [{metric: exact_match}]", own)
    (tmp_path / "t.yaml").write_text(text)
    suite = load_suite((tmp_path,), allow_code=True)
    with pytest.raises(UsageError, match="metric 'n' is None for an item"):
        build_task(suite.task("t"), suite, mini_source())


def test_half_an_exemplar_is_refused(tmp_path: Path) -> None:
    write(tmp_path, lines(["a", "b"]), name="rows.jsonl")
    (tmp_path / "t.yaml").write_text((tmp_path / "t.yaml").read_text() + "num_fewshot: 1.5\n")
    with pytest.raises(UsageError, match=r"'num_fewshot' must be a whole number of 0 or more, not 1\.5"):
        load_suite((tmp_path / "t.yaml",))


def test_mappings_that_a_dataset_stores_as_json_are_mappings() -> None:
    """So the hub has JSON files whose mappings have different keys."""
    rows: list[dict[str, Any]] = [{"x": {"A": "1"}}, {"x": {"A": "1", "B": "2"}}]
    features = datasets.Features({"x": datasets.Json()})
    table = undecoded(datasets.Dataset.from_list(rows, features=features))
    assert list(table) == rows
