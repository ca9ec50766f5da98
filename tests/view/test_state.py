"""What the page is told of runs: progress, pace, scores so far, and what is read again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from cme_bench.reports.intervals import share_so_far
from cme_bench.runs.folder import read_run
from cme_bench.runs.records import SessionRecord
from cme_bench.runs.store import RunWriter
from cme_bench.stats.intervals import wilson
from cme_bench.view import follow
from cme_bench.view.follow import PaceMeter, TaskFollower
from cme_bench.view.state import Board, run_id
from tests.support.folders import MadeTask, make_run

HASH = "f" * 64
SCORES = [1.0, 0.0, 1.0, 1.0]
TWO = {"cme_a": MadeTask(SCORES), "cme_b": MadeTask([1.0] * 4, "qa", "b", "f1")}


def going_on(folder: Path) -> Path:
    """A run of two tasks: the first is finished, the second has two of four items and half a line."""
    make_run(folder, TWO, finished=False)
    results = orjson.loads((folder / "results.json").read_bytes())
    del results["cme"]["tasks"]["cme_b"]
    del results["cme"]["forms"]["generated"]["domains"]["qa"]
    (folder / "results.json").write_bytes(orjson.dumps(results))
    samples = folder / "samples" / "cme_b.jsonl"
    lines = samples.read_bytes().splitlines(keepends=True)
    samples.write_bytes(lines[0] + lines[1] + lines[2][:30])
    return folder


def shown(board: Board, name: str) -> dict[str, Any]:
    key = run_id(board.root / name, board.root)
    state = board.state(frozenset([key]))
    return next(run for run in state["runs"] if run["id"] == key)


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    folder = going_on(tmp_path / "r")
    board = Board(tmp_path)
    with RunWriter(folder):
        run = shown(board, "r")
    assert (run["state"], run["done"], run["total"]) == ("running", 6, 8)
    assert (run["tasks_done"], run["tasks"]) == (1, 2)
    first, second = run["rows"]
    low, high = (float(x) for x in wilson(3, 4))
    assert first["finished"] and first["score"]["text"] == "75.00 %"
    assert first["score"]["places"] == [75.0, round(100 * low, 2), round(100 * high, 2)]
    assert (second["finished"], second["done"], second["score"]["text"]) == (False, 2, "100.00 %")
    assert shown(board, "r")["state"] == "stopped"
    assert shown(board, "r")["resumable"]


def test_a_follower_reads_what_is_appended_once(tmp_path: Path) -> None:
    folder = going_on(tmp_path / "r")
    task = TaskFollower(folder, "cme_b", read_run(folder).tasks["cme_b"])
    file = folder / "samples" / "cme_b.jsonl"
    assert task.read() > 0
    assert task.done == 2
    before = task.offset
    whole = file.read_bytes()[:before]
    line = orjson.loads(whole.splitlines()[0])
    wrong = line | {"scores": {"f1": 0.0}}  # the item is scored anew: the last record counts
    other = line | {"id": 3, "task": "0" * 64}  # of another version of the task
    file.write_bytes(whole + orjson.dumps(wrong) + b"\n" + orjson.dumps(other) + b"\n")
    task.read()
    assert task.done == 2
    assert task.score() == share_so_far([0.0, 1.0], binary=False)
    file.write_bytes(whole.splitlines(keepends=True)[0])
    task.read()
    assert task.done == 1, "a file that became shorter is read anew"


def test_several_answers_of_an_item_are_one_value(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", {"cme_a": MadeTask([1.0, 0.0], planned={"repeats": 2})}).folder
    file = folder / "samples" / "cme_a.jsonl"
    lines = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    again = [line | {"repeat": 1, "scores": {"acc": 1.0}} for line in lines]
    file.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines + again))
    task = TaskFollower(folder, "cme_a", read_run(folder).tasks["cme_a"])
    task.read()
    assert (task.done, task.total) == (4, 4)
    assert task.score() == share_so_far([1.0, 0.5], binary=False)


@pytest.mark.parametrize("metric", ["perplexity", "bleu", "mcc"])
def test_what_is_no_mean_of_shares_has_no_score_so_far(tmp_path: Path, metric: str) -> None:
    folder = make_run(tmp_path / "r", {"cme_a": MadeTask([1.0, 0.0], metric=metric)}).folder
    task = TaskFollower(folder, "cme_a", read_run(folder).tasks["cme_a"])
    task.read()
    assert task.done == 2 and task.score() is None


def test_broken_and_endless_lines_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = going_on(tmp_path / "r")
    planned = read_run(folder).tasks["cme_b"]
    file = folder / "samples" / "cme_b.jsonl"
    file.write_bytes(b'{"id": "\xff"}\n')
    task = TaskFollower(folder, "cme_b", planned)
    task.read()
    assert task.fault == "a record is broken"
    os.truncate(file, 0)
    os.truncate(file, 2**20)
    monkeypatch.setattr(follow, "CHUNK", 2**16)
    task = TaskFollower(folder, "cme_b", planned)
    task.read(2**16)
    assert task.fault == "a record is too long to be followed"
    assert task.read() == 0


def test_a_larger_limit_begins_anew(tmp_path: Path) -> None:
    """results.json is that of the smaller limit until the task is finished again."""
    folder = make_run(tmp_path / "r", {"cme_a": MadeTask(SCORES)}, finished=False).folder
    content = orjson.loads((folder / "run.json").read_bytes())
    content["tasks"]["cme_a"] |= {"n": 8, "rows": 8}
    (folder / "run.json").write_bytes(orjson.dumps(content))
    run = shown(Board(tmp_path), "r")
    assert (run["done"], run["total"], run["tasks_done"]) == (4, 8, 0)
    assert not run["rows"][0]["finished"]


def test_the_pace_is_that_of_the_last_half_minute(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", {"cme_a": MadeTask(SCORES)}).run
    meter = PaceMeter()

    def look(seconds: float, items: int, tokens: int) -> tuple[float | None, float | None]:
        session = {"seconds": seconds, "items": items, "engine": {"tokens_computed": tokens}}
        [run.sessions[-1]] = [_session(session)]
        pace = meter.look(run)
        return pace.items, pace.tokens

    assert look(0.0, 0, 0) == (None, None)
    assert look(10.0, 10, 1000) == (1.0, 100.0)
    assert look(20.0, 40, 2000) == (2.0, 100.0)
    assert look(60.0, 120, 2000) == (2.0, None), "since the 20th second"
    run.sessions.append(_session({"seconds": 2.0, "items": 8}))
    assert meter.look(run).items == 4.0, "another session has another clock"
    assert meter.look(run).left(20) == 5.0


def _session(content: dict[str, Any]) -> SessionRecord:
    import msgspec

    return msgspec.convert(content, SessionRecord)


def test_a_folder_is_read_again_when_a_file_of_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "a", {"cme_a": MadeTask(SCORES)})
    make_run(tmp_path / "b", {"cme_a": MadeTask(SCORES)})
    read: list[str] = []
    from cme_bench.view import state

    original = state.overview
    monkeypatch.setattr(
        state, "overview", lambda folder, root: read.append(folder.name) or original(folder, root)
    )
    board = Board(tmp_path)
    first = board.state()
    assert board.state()["seen"] == first["seen"]
    assert read == ["a", "b"]
    content = (tmp_path / "b" / "run.json").read_bytes()
    (tmp_path / "b" / "run.json").write_bytes(content.replace(b"smollm2", b"another"))
    assert board.state()["seen"] != first["seen"]
    assert read == ["a", "b", "b"]


def test_a_name_that_is_no_text_is_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", {"cme_a": MadeTask(SCORES)}).folder
    folder.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[2J"))
    [run] = Board(tmp_path).state()["runs"]
    assert run["name"] == "\\udcff\\x1b[2J"
    orjson.dumps(run)
