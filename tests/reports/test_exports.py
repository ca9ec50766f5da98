"""Runs as pandas frames and as a model card's metrics block."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from lm_eval.utils import (
    get_latest_filename,
    get_results_filenames,
    get_sample_results_filenames,
    hash_string,
    make_table,
)
from typer.testing import CliRunner

import cme_bench
from cme_bench.cli import app
from cme_bench.reports.card import model_card
from cme_bench.reports.lm_eval_folder import sample
from cme_bench.scoring.record import Scored, StoredResponse, scored_item
from cme_bench.util.errors import UsageError
from tests.support.folders import ADAPTER, MadeTask, make_run

TASKS = {
    "cme_a": MadeTask([1.0, 0.0, 1.0, 1.0], "nli", "a", texts=["yes", "", "no", "yes"]),
    "cme_b": MadeTask([0.5, 0.25], "summarization", "b", "rouge_l", planned={"rows": 90, "limit": 2}),
}


def test_load_runs_has_a_row_for_each_task_and_metric(tmp_path: Path) -> None:
    make_run(tmp_path / "base", TASKS)
    make_run(tmp_path / "team", TASKS, adapter=ADAPTER)
    frame = cme_bench.load_runs(tmp_path / "base", str(tmp_path / "team"))
    assert len(frame) == 4
    row = frame[(frame["method"] == "teamlora") & (frame["task"] == "cme_a")].iloc[0]
    assert (row["metric"], row["value"], row["n"], row["rank"], row["form"]) == (
        "acc",
        0.75,
        4,
        32,
        "generated",
    )
    assert frame.pivot(index="task", columns="run", values="value").shape == (2, 2)


def test_load_runs_has_a_row_for_each_item(tmp_path: Path) -> None:
    make_run(tmp_path / "base", {"cme_a": TASKS["cme_a"]})
    frame = cme_bench.load_runs(tmp_path / "base", items=True)
    assert frame["value"].tolist() == [1.0, 0.0, 1.0, 1.0]
    assert frame["answer"].tolist() == ["yes", "", "no", "yes"]


def test_load_runs_of_nothing_is_empty_and_of_no_run_an_error(tmp_path: Path) -> None:
    assert cme_bench.load_runs().empty
    with pytest.raises(UsageError, match=r"is .* a run folder"):
        cme_bench.load_runs(tmp_path)


def test_the_hub_reads_the_card(tmp_path: Path) -> None:
    run = make_run(tmp_path / "team", TASKS, adapter=ADAPTER)
    card = ModelCard(model_card(run) + "\n# team\n", ignore_metadata_errors=False)
    results = {(r.task_name, r.metric_type): r for r in card.data.eval_results}
    assert results["nli", "acc"].metric_value == 75.0
    assert results["summarization", "rouge_l"].dataset_name == "cme_b (generated, 0-shot, 2 of 90 items)"
    average = results["average", "macro"]
    assert average.metric_value == pytest.approx(56.25)
    assert "reconstruction; limited" in average.dataset_name
    assert card.data.model_name == "smollm2 + t32"


def test_lm_eval_reads_its_folder_of_a_run(tmp_path: Path) -> None:
    """What its own tools read: the newest results as a table, and samples by task."""
    made = make_run(tmp_path / "team", TASKS, adapter=ADAPTER)
    out = tmp_path / "out"
    arguments = ["card", str(tmp_path / "team"), "--lm-eval", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    folder = out / "smollm2+t32"
    files = sorted(map(str, folder.iterdir()))
    results = json.loads(Path(get_latest_filename(get_results_filenames(files))).read_text())
    assert "|cme_a|" in make_table(results)
    assert results["results"]["cme_a"]["acc,none"] == 0.75
    assert results["model_name"] == "smollm2+t32"
    assert float(results["total_evaluation_time_seconds"]) == pytest.approx(made.run.seconds, abs=5)
    [samples] = get_sample_results_filenames([file for file in files if "cme_a" in file])
    rows = [json.loads(line) for line in Path(samples).read_text().splitlines()]
    assert [row["doc_id"] for row in rows] == [0, 1, 2, 3]
    assert [row["acc"] for row in rows] == [1.0, 0.0, 1.0, 1.0]
    assert rows[0]["resps"] == [["yes"]] and rows[0]["filtered_resps"] == ["yes"]
    with pytest.raises(UsageError, match="stands alone"):
        CliRunner().invoke(app, [*arguments, "--private"], catch_exceptions=False)


def test_the_choices_of_a_question_are_the_requests_of_a_sample() -> None:
    response = StoredResponse(logprobs=[-1.0, -2.0], greedy=[True, False])
    record = scored_item(3, Scored(scores={"acc": 1.0}), response, choices=["yes", "no"], doc={"q": "?"})
    row = sample(record)
    assert row["arguments"] == [("", "yes"), ("", "no")]
    assert row["resps"] == [[(-1.0, True)], [(-2.0, False)]]
    assert row["filtered_resps"] == [(-1.0, True), (-2.0, False)]
    assert row["doc_hash"] == hash_string('{\n  "q": "?"\n}')
