"""The lines of ``--engine-stats``, added up over resumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cme_bench.reports.engine_stats import phases_line, stats_lines
from cme_bench.runs.options import parse_settings
from cme_bench.util.errors import UsageError
from cme_bench.util.float32_pieces import BY_PIECES
from tests.support.folders import make_run

STATS = {
    "tokens_computed": 300,
    "tokens_padding": 100,
    "tokens_rowwise": 1200,
    "tokens_generated": 7,
    "model_seconds": 1.5,
    "peak_memory_bytes": 2**30,
}


def test_sessions_add_up(tmp_path: Path) -> None:
    engines = [{"engine": STATS}, {}, {"engine": STATS | {"peak_memory_bytes": 2**31}}]
    sessions = [{"seconds": 1.0} | engine for engine in engines]
    run = make_run(tmp_path / "r", {}, sessions=sessions, engine={"prefixes": "shared"})
    assert list(stats_lines(run.folder)) == [
        "engine: 600 tokens computed, 2,400 row by row (4.0x), prefixes shared",
        "engine: 200 tokens/s in 3.0 s of model time, 25.0 % padding, 14 tokens generated, "
        "peak memory 2.00 GiB",
    ]


@pytest.mark.parametrize("pieces", [False, True])
def test_the_floor_is_that_of_the_products_that_were_computed(pieces: bool, tmp_path: Path) -> None:
    stats = STATS | {"extra": {"serving_seconds": 2.0, "device_seconds": 1.0, "flops": 1e9}}
    engine = {"dtype": "float32", **({"products": BY_PIECES} if pieces else {})}
    run = make_run(tmp_path / "r", {}, sessions=[{"seconds": 1.0, "engine": stats}], engine=engine)
    *_, last = stats_lines(run.folder)
    assert last.startswith("engine: the device waited 50.0 % of 2.0 s; products alone take 0.0")


def test_nothing_computed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", {}, sessions=[{"seconds": 1.0}], engine={})
    assert list(stats_lines(run.folder)) == ["engine: nothing was computed, all responses were stored"]


def test_the_switch_for_plain_rows() -> None:
    assert parse_settings(["shared_prefixes=0"]) == {"shared_prefixes": 0}
    with pytest.raises(UsageError, match="shared_prefixes takes 0 or 1"):
        parse_settings(["shared_prefixes=2"])


def test_phases_add_up_to_the_whole_time_and_short_ones_are_left_out() -> None:
    mine = {"start": 0.26, "libraries": 4.0, "tasks": 0.04, "answers": 1200.0, "other": 0.5}
    line = "time: 1,204.8 s: start 0.3, libraries 4.0, answers 1,200.0, other 0.5"
    assert phases_line(mine, {"hash": 0.01}) == line
    assert phases_line(mine, {"weights": 2.0, "hash": 0.01}) == f"{line}; beside: weights 2.0"
