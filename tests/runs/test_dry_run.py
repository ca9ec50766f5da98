"""A dry run: it counts what the run asks, writes nothing, loads no weights, refuses what a run refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import cme_bench
from cme_bench.cli import app
from cme_bench.models import loaded
from cme_bench.runs.cost import span
from cme_bench.runs.dry_run import distinct_tokens, dry_run
from cme_bench.runs.folder import read_run
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.util.errors import UsageError

IDS = st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple)


def options(checkpoint: Path, out: Path, **more: object) -> RunOptions:
    asked = {"tasks": "cme_rte_ll,cme_rte", "data": "mini", "limit": 3, "out": out} | more
    return RunOptions(model=str(checkpoint), **asked)  # type: ignore[arg-type]


def test_it_counts_what_the_run_then_asks(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options(tiny_checkpoint, tmp_path / "r", tasks="cme_rte_ll")
    with monkeypatch.context() as patched:
        patched.setattr(loaded, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
        [found] = dry_run(asked)
    assert not (tmp_path / "r").exists(), "nothing is written"
    run(asked)
    stats = read_run(tmp_path / "r").stats
    total = found.total
    assert (total.items, total.answers, total.stored, total.rows) == (3, stats.requests, 0, 6)
    assert total.tokens == stats.tokens_rowwise
    assert 0 < total.distinct < total.tokens
    assert total.new_tokens == 0
    assert found.seconds is not None and found.seconds.prompts > 0 and found.seconds.answers_at_most == 0


def test_what_is_stored_is_not_asked_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run(options(tiny_checkpoint, tmp_path / "r", limit=2))
    before = sorted((f, f.stat().st_mtime_ns) for f in (tmp_path / "r").rglob("*"))
    [more] = dry_run(options(tiny_checkpoint, tmp_path / "r"))
    assert [(task.answers, task.stored) for task in more.tasks] == [(3, 2), (3, 2)]
    [nothing] = dry_run(options(tiny_checkpoint, tmp_path / "r", limit=2))
    assert "Every answer is stored already." in str(nothing)
    assert sorted((f, f.stat().st_mtime_ns) for f in (tmp_path / "r").rglob("*")) == before


def test_generated_answers_are_counted_at_their_most(tiny_checkpoint: Path, tmp_path: Path) -> None:
    asked = options(
        tiny_checkpoint, tmp_path / "r", tasks="cme_rte", max_new_tokens=7, repeats=2, temperature=1.0
    )
    [found] = dry_run(asked)
    total = found.total
    assert (total.items, total.answers, total.rows) == (3, 6, 6)
    assert total.new_tokens == 42
    assert total.distinct <= total.tokens / 2, "a prompt is computed once for both answers"


def test_ray_needs_no_cluster_and_no_time_is_guessed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    [found] = dry_run(options(tiny_checkpoint, tmp_path / "r", engine="ray", workers=3))
    assert (found.seconds, found.engine) == (None, "hf")
    assert "another machine computes" in str(found)


def test_it_refuses_what_a_run_refuses(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run(options(tiny_checkpoint, tmp_path / "r", limit=2))
    with pytest.raises(UsageError, match="holds a run with dtype"):
        dry_run(options(tiny_checkpoint, tmp_path / "r", dtype="bfloat16"))
    with pytest.raises(UsageError, match="do not fit the model's context"):
        dry_run(options(tiny_checkpoint, tmp_path / "s", max_truncated=0, settings={"max_length": 40}))
    with pytest.raises(UsageError, match="nonsense"):
        dry_run(options(tiny_checkpoint, tmp_path / "s", tasks="nonsense"))


def test_from_the_command_line_and_from_python(tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = [
        "--tasks",
        "cme_rte_ll",
        "--data",
        "mini",
        "--limit",
        "2",
        "--out",
        str(tmp_path / "r"),
        "--dry-run",
    ]
    done = CliRunner().invoke(app, ["run", str(tiny_checkpoint), *words])
    assert done.exit_code == 0
    assert "cme_rte_ll" in done.stdout and "Loading is left out" in done.stdout
    [found] = cme_bench.dry_run(tiny_checkpoint, tasks="cme_rte_ll", data="mini", limit=2)
    assert found.total.answers == 2
    with pytest.raises(UsageError, match="unknown option 'limti'"):
        cme_bench.dry_run(tiny_checkpoint, limti=2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(IDS, IDS | st.just(())), max_size=6))
def test_distinct_tokens_are_the_nodes_of_the_trie(
    rows: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    fed = [prompt + more[:-1] for prompt, more in rows]
    assert distinct_tokens(rows) == len({ids[:n] for ids in fed for n in range(1, len(ids) + 1)})


def test_times_read_well() -> None:
    assert [span(s) for s in (0.26, 12, 120, 7200, 200_000)] == [
        "0.3 s",
        "12 s",
        "2.0 min",
        "2.0 h",
        "2.3 days",
    ]
