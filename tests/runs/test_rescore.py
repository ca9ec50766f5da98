"""Scoring again without a model: what changes, what is refused, and what a crash leaves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from cme_bench.runs.folder import current_records, read_run
from cme_bench.runs.options import RunOptions
from cme_bench.runs.rescore import rescore
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, record_bytes, samples_file
from cme_bench.scoring.record import StoredAnswer
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json

TASKS = "cme_rte,cme_rte_ll"


@pytest.fixture(scope="module")
def answered(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose model is gone."""
    folder = tmp_path_factory.mktemp("rescore")
    shutil.copytree(tiny_checkpoint, folder / "model")
    options = RunOptions(model=str(folder / "model"), tasks=TASKS, data="mini", out=folder / "run")
    run(options)
    shutil.rmtree(folder / "model")
    return folder / "run"


@pytest.fixture
def folder(answered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(answered, tmp_path / "run"))


def rewrite(folder: Path, name: str, item: int, /, **changes: Any) -> None:
    """Changes a stored record, as an earlier scorer or another row would have made it."""
    file = samples_file(folder, name)
    records = [structs.replace(r, **changes) if r.id == item else r for r in read_records(file)]
    file.write_bytes(b"".join(record_bytes(r) + b"\n" for r in records))


def test_nothing_changes_where_nothing_has_changed(folder: Path) -> None:
    before = {f.name: f.read_bytes() for f in folder.rglob("*") if f.suffix in (".jsonl", ".csv")}
    results = read_json(folder / "results.json")
    found = rescore(folder)
    assert [(t.task, t.changed, t.items) for t in found] == [(t, 0, 12) for t in TASKS.split(",")]
    assert before == {f.name: f.read_bytes() for f in folder.rglob("*") if f.suffix in (".jsonl", ".csv")}
    assert results == read_json(folder / "results.json")
    assert len(read_json(folder / "run.json")["rescored"]) == 1
    assert {t.task: t.unchecked for t in found} == {"cme_rte": True, "cme_rte_ll": False}


def test_scores_of_an_earlier_scorer_are_replaced(folder: Path) -> None:
    right = read_json(folder / "results.json")["results"]["cme_rte"]
    rewrite(folder, "cme_rte", 3, scores={"acc": 0.5}, answer=StoredAnswer("x", "old"))
    found = {t.task: t for t in rescore(folder)}
    assert found["cme_rte"].changed == 1
    answer = current_records(folder, "cme_rte", read_run(folder).tasks["cme_rte"])[3].answer
    assert answer is not None and answer.rule != "old"
    assert len(list(read_records(samples_file(folder, "cme_rte")))) == 13, "appended, not overwritten"
    assert read_json(folder / "results.json")["results"]["cme_rte"] == right


def test_a_crash_between_records_and_results_is_mended(folder: Path) -> None:
    rewrite(folder, "cme_rte_ll", 2, task="0" * 64)
    planned = read_run(folder).tasks["cme_rte_ll"]
    with pytest.raises(UsageError, match="another version of cme_rte_ll; cme-bench rescore mends that"):
        current_records(folder, "cme_rte_ll", planned)
    rescore(folder)
    assert len(current_records(folder, "cme_rte_ll", planned)) == 12


def test_another_row_is_refused(folder: Path) -> None:
    rewrite(folder, "cme_rte_ll", 5, doc={"premise": "other"})
    with pytest.raises(UsageError, match=r"validation\.jsonl:6: task cme_rte_ll: item 5 is another row"):
        rescore(folder)


def test_another_prompt_is_refused(folder: Path) -> None:
    rewrite(folder, "cme_rte_ll", 0, prompt="Something else?")
    with pytest.raises(UsageError, match="asks item 0 otherwise"):
        rescore(folder)


def test_missing_rows_and_missing_records_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        rescore(folder, data=str(tmp_path))
    samples_file(folder, "cme_rte").unlink()
    with pytest.raises(UsageError, match="per-item records are needed"):
        rescore(folder)
