"""Runs as pandas frames and as a model card's metrics block."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import cme_bench
from cme_bench.reports.card import model_card
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
