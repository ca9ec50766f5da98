"""The list of runs: states, filters, order, and folders that are broken or made to do harm."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cme_bench
from cme_bench.cli import app
from cme_bench.reports.listing import Overview, overview
from cme_bench.reports.listing_text import age, chosen, ordered, scores_text, tasks_text
from cme_bench.runs.find import DEEPEST, find_runs
from cme_bench.runs.owner import SILENT_SECONDS, Owner, being_written, owner_of, this_process
from cme_bench.runs.store import RunWriter
from cme_bench.scoring.scales import PERPLEXITY, Measure
from cme_bench.util.errors import UsageError
from tests.support.folders import ADAPTER, MadeTask, make_run
from tests.support.hostile import SECRET, hostile_runs, outside

ONE = {"cme_a": MadeTask([1.0, 0.0, 1.0, 1.0])}


def listed(root: Path) -> dict[str, Overview]:
    return {run.name: run for run in (overview(folder, root) for folder in find_runs(root).runs)}


def runs(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["runs", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_run_is_in_one_state(tmp_path: Path, dead: int) -> None:
    for name in ("finished", "stopped", "incomplete", "killed", "other"):
        make_run(tmp_path / name, ONE, finished=name == "finished")
    make_run(tmp_path / "running", ONE, finished=True)  # it is gone on with, and has not said so yet
    (tmp_path / "killed" / ".lock").write_text(Owner(dead, platform.node(), "1").text)
    (tmp_path / "other" / ".lock").write_text(Owner(os.getpid(), platform.node(), "1").text)
    content = json.loads((tmp_path / "incomplete" / "run.json").read_text())
    content["unanswered"] = {"cme_a": {"3": "died"}}
    (tmp_path / "incomplete" / "run.json").write_text(json.dumps(content))
    with RunWriter(tmp_path / "running"), RunWriter(tmp_path / "preparing"):
        states = {name: run.state for name, run in listed(tmp_path).items()}
    assert states == {
        "finished": "finished",
        "stopped": "stopped",
        "incomplete": "incomplete",
        "killed": "stopped",
        "other": "stopped",
        "running": "running",
        "preparing": "preparing",
    }
    after = listed(tmp_path)
    assert after["running"].state == "finished", "its writer ended"
    assert after["preparing"].state == "stopped"
    assert [name for name, run in after.items() if run.resumable] == [
        "incomplete",
        "killed",
        "other",
        "preparing",
        "stopped",
    ]


def test_a_writer_elsewhere_is_alive_while_its_folder_changes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", ONE).folder
    (folder / ".lock").write_text("12 another-host 99")
    assert being_written(folder)
    assert not being_written(folder, now=time.time() + SILENT_SECONDS + 1)
    (folder / ".lock").write_text(str(os.getpid()))  # as earlier versions left it, whoever has the number now
    assert being_written(folder)
    assert not being_written(folder, now=time.time() + SILENT_SECONDS + 1)


def test_an_owner_is_read_as_it_is_written() -> None:
    assert owner_of(this_process().text) == this_process()
    assert this_process().alive
    assert owner_of("12") == Owner(12)
    for text in ("", "-1 host 3", "0", "x", "99999999999999", "²"):
        assert owner_of(text) is None


def test_a_packed_run_cannot_be_resumed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", ONE, finished=False).folder
    (folder / "scores.json").write_text("{}")
    assert not listed(tmp_path)["r"].resumable


def test_filters_and_order(tmp_path: Path) -> None:
    half = {"cme_b": MadeTask([1.0, 0.0])}
    make_run(tmp_path / "b", ONE, name="Llama")
    make_run(tmp_path / "a", half, name="llama", adapter=ADAPTER)
    make_run(tmp_path / "deep" / "c", ONE | half, name="qwen", adapter=ADAPTER | {"name": "lora"})
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "run.json").write_text("[]")
    every = list(listed(tmp_path).values())

    def names(runs: list[Overview]) -> list[str]:
        return [run.name for run in runs]

    assert names(every) == ["a", "b", "deep/c", "none"]
    assert names(chosen(every, model="LLAMA")) == ["a", "b"]
    assert names(chosen(every, adapter="base")) == ["b"]
    assert names(chosen(every, adapter="T3")) == ["a"]
    assert names(chosen(every, task="_b")) == ["a", "deep/c"]
    assert names(chosen(every, states=("broken",))) == ["none"]
    assert names(ordered(every, "score")) == ["b", "deep/c", "a", "none"]
    assert names(ordered(every, "score", reverse=True)) == ["a", "deep/c", "b", "none"], "none has no score"
    assert names(ordered(every, "n")) == ["deep/c", "b", "a", "none"]
    assert names(ordered(every, "adapter")) == ["deep/c", "a", "b", "none"]


def test_cells_read_well(tmp_path: Path) -> None:
    measure = Measure(PERPLEXITY, "lower", "perplexity")
    make_run(tmp_path / "ppl", {"cme_a": MadeTask([1.0, 2.0], measure=measure, value=12.5)})
    make_run(tmp_path / "four", {f"cme_{i}": MadeTask([1.0, 0.0], f"d{i}") for i in range(4)})
    part = make_run(tmp_path / "part", ONE | {"cme_b": MadeTask([1.0])}, finished=False).folder
    content = json.loads((part / "results.json").read_text())
    del content["cme"]["tasks"]["cme_b"]
    (part / "results.json").write_text(json.dumps(content))
    four = listed(tmp_path)["four"]
    assert tasks_text(four) == "4 in 4 domains"
    assert scores_text(four) == "50.00 ± 25.00"
    assert scores_text(listed(tmp_path)["ppl"]).startswith("12.5 ±")
    assert tasks_text(listed(tmp_path)["part"]) == "cme_a, cme_b (1 done)"
    assert [age(s) for s in (0, 59, 61, 7200, 90_000 * 4)] == ["0 s", "59 s", "1 min", "2 h", "4 d"]


def test_the_age_is_that_of_the_run_and_not_of_the_copy(tmp_path: Path) -> None:
    session: dict[str, Any] = {"started": "2025-01-01T00:00:00+00:00", "seconds": 60.0}
    make_run(tmp_path / "r", ONE, sessions=[session])
    assert listed(tmp_path)["r"].changed == 1735689660.0


def test_a_finished_run_reads_no_samples(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", ONE).folder
    os.truncate(folder / "samples" / "cme_a.jsonl", 2 * 2**40)
    assert listed(tmp_path)["r"].state == "finished"


def test_json_says_what_the_table_says(tmp_path: Path) -> None:
    make_run(tmp_path / "a", ONE, adapter=ADAPTER)
    code, out, _ = runs(str(tmp_path), "--json")
    [row] = json.loads(out)
    assert code == 0
    assert (row["name"], row["state"], row["adapter"], row["n"]) == ("a", "finished", "t32", 4)
    assert row["scores"]["generated"]["value"] == 0.75
    code, out, _ = runs(str(tmp_path))
    assert "75.00 ± 25.00" in out and "t32" in out


def test_python_lists_runs_as_a_frame(tmp_path: Path) -> None:
    make_run(tmp_path / "a", ONE, adapter=ADAPTER)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "run.json").write_text("[]")
    frame = cme_bench.list_runs(tmp_path)
    assert list(frame["name"]) == ["a", "b"]
    assert frame.set_index("name").loc["a", "score"] == 0.75
    assert frame.set_index("name").loc["b", "fault"] == "run.json: not a JSON object"
    assert list(cme_bench.list_runs(tmp_path / "a")["state"]) == ["finished"]


def test_what_is_no_run_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        runs(str(tmp_path / "absent"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    code, out, err = runs(str(tmp_path))
    assert code == 0 and "no run" in out and "no run in adapter" in err
    make_run(tmp_path / "r", ONE)
    assert "no run that passes" in runs(str(tmp_path), "--model", "other")[1]
    deep = tmp_path.joinpath(*("d" * (DEEPEST + 1)))
    make_run(deep / "r", ONE)
    assert "deeper than" in runs(str(tmp_path))[2]


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "runs"
    hostile_runs(root, outside(tmp_path / "secret"))
    yield root


def test_hostile_folders_are_rows_and_nothing_outside_is_read(hostile: Path) -> None:
    good = make_run(hostile / "good", ONE).folder
    code, out, err = runs(str(hostile))
    assert code == 0
    assert SECRET not in out + err
    assert "Traceback" not in out + err
    found = listed(hostile)
    assert found[good.name].state == "finished"
    assert len(found) == len(list(hostile.glob("run[0-9]*"))) + 1
    for run in found.values():
        assert "\n" not in run.fault
    assert err.count("not followed") == 2, "a link out, and one to the folder itself"
