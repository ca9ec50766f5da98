"""An evaluation in trackers: every score with its error, the table, and nothing twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import cme_bench
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.util.errors import UsageError
from tests.support import tracked


@pytest.mark.slow
@pytest.mark.usefixtures("tracker_places")
def test_scores_their_errors_and_the_table(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = RunOptions(
        model=str(tiny_checkpoint),
        tasks="cme_rte_ll,cme_emotion_ll",
        data="mini",
        limit=4,
        engine="hf",
        out=tmp_path / "r",
        report_to=("trackio", "tensorboard"),
        report_project="runs-of-a-test",
    )
    [folder] = run(asked)
    name = f"r-{json.loads((folder / 'trackers.json').read_bytes())['id'][:6]}"
    scores = cme_bench.open_run(folder).scores
    for _ in range(2):
        values, tables = tracked.by_trackio("runs-of-a-test", name)
        for task, score in scores.items():
            assert list(values[f"{task}/{score.metric}"].values()) == [pytest.approx(float(score))]
            assert list(values[f"{task}/{score.metric}_stderr"].values()) == [pytest.approx(score.stderr)]
        assert tables == ["scores"]
        assert "average/likelihood" in values
        run(asked)  # the same again: nothing is told twice
    [more] = run(replace(asked, report_to=("trackio", "mlflow", "tensorboard")))
    kept, params = tracked.by_mlflow("runs-of-a-test")
    assert set(kept) == set(values) and params["arguments/limit"] == "4"
    numbers, texts = tracked.by_tensorboard(more)
    assert set(numbers) == set(values)
    assert {"settings/text_summary", "scores/text_summary"} <= set(texts)


def test_an_unknown_tracker_is_one_line(tiny_checkpoint: Path) -> None:
    asked = RunOptions(model=str(tiny_checkpoint), report_to=("mlfow",))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown tracker 'mlfow'; did you mean 'mlflow'"):
        run(asked)
