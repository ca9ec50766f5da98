"""Two runs item by item: numbers by hand, scipy's tests, refusals and notes."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cme_bench.reports.compare import compare_runs
from cme_bench.reports.compare_text import comparison_markdown, comparisons_csv, flips_csv, pvalue
from cme_bench.reports.runs import RunView, open_run
from cme_bench.runs.store import samples_file
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json, write_json
from tests.support.folders import MadeTask, make_run


@pytest.fixture
def runs(tmp_path: Path) -> list[RunView]:
    """nli: two datasets, one of two tasks; summarization: one task of ROUGE. B is better on the whole."""
    rng = np.random.default_rng(0)

    def tasks(gain: float) -> dict[str, MadeTask]:
        hard = np.random.default_rng(1).random(300)
        return {
            "cme_r1": MadeTask((rng.random(300) < hard + gain) * 1.0, "nli", "anli"),
            "cme_r2": MadeTask((rng.random(200) < hard[:200] + gain) * 1.0, "nli", "anli"),
            "cme_snli": MadeTask((rng.random(250) < hard[:250] + gain) * 1.0, "nli", "snli"),
            "cme_xsum": MadeTask(
                0.5 * hard[:60] + 0.2 * rng.random(60) + gain, "summarization", "xsum", "rouge_l"
            ),
        }

    return [make_run(tmp_path / "a", tasks(0.0)), make_run(tmp_path / "b", tasks(0.05))]


def scores(run: RunView, task: str) -> np.ndarray:
    import orjson

    return np.array(
        [
            next(iter(orjson.loads(line)["scores"].values()))
            for line in samples_file(run.folder, task).read_bytes().splitlines()
        ]
    )


def test_tasks_are_tested_by_mcnemar_or_permutation(runs: list[RunView]) -> None:
    (found,) = compare_runs(*runs)
    rows = {row.name: row for row in found.tasks}
    a, b = (scores(run, "cme_snli") for run in runs)
    wins, losses = int((b > a).sum()), int((b < a).sum())
    row = rows["cme_snli"]
    assert (row.difference.wins, row.difference.losses, row.difference.ties) == (
        wins,
        losses,
        250 - wins - losses,
    )
    assert row.difference.value == pytest.approx(b.mean() - a.mean())
    assert row.p == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)
    assert row.test == "McNemar, exact"
    (mid,) = compare_runs(*runs, mid_p=True)
    other = next(r for r in mid.tasks if r.name == "cme_snli")
    assert other.test == "McNemar, mid-p"
    assert other.p == pytest.approx(row.p - stats.binom.pmf(min(wins, losses), wins + losses, 0.5))
    a, b = (scores(run, "cme_xsum") for run in runs)
    row = rows["cme_xsum"]
    assert row.test == "permutation"
    assert row.p == pytest.approx(stats.ttest_rel(b, a).pvalue, abs=0.01)
    assert row.detectable == pytest.approx((1.959964 + 0.841621) * stats.sem(b - a))


def test_domains_weigh_datasets_and_adjust_over_domains(runs: list[RunView]) -> None:
    (found,) = compare_runs(*runs)
    tasks = {row.name: row.difference for row in found.tasks}
    nli, summarization = found.domains
    expected = (tasks["cme_r1"].value + tasks["cme_r2"].value) / 4 + tasks["cme_snli"].value / 2
    assert nli.difference.value == pytest.approx(expected)
    variance = (tasks["cme_r1"].stderr ** 2 + tasks["cme_r2"].stderr ** 2) / 16 + tasks[
        "cme_snli"
    ].stderr ** 2 / 4
    assert nli.difference.stderr == pytest.approx(math.sqrt(variance))
    assert nli.p == pytest.approx(2 * stats.norm.sf(abs(expected) / math.sqrt(variance)), abs=0.02)
    low, high = sorted((nli.p, summarization.p))
    assert {nli.adjusted, summarization.adjusted} == {min(2 * low, 1), max(min(2 * low, 1), high)}
    assert found.average.difference.value == pytest.approx((expected + summarization.difference.value) / 2)
    assert found.average.difference.n == 810
    results = [run.results.forms["generated"].average.value for run in runs]
    assert (found.average.a, found.average.b) == pytest.approx(tuple(results)), "the tables' own averages"


def test_text_names_the_numbers_and_the_items_that_flipped(runs: list[RunView]) -> None:
    (found,) = compare_runs(*runs)
    text = comparison_markdown(found, by="task", flips=2)
    assert "**CME, generated: A = smollm2 (a), B = smollm2 (b)**" in text
    assert "| cme_snli | acc" in text
    row = next(r for r in found.tasks if r.name == "cme_snli")
    a, b = (scores(run, "cme_snli") for run in runs)
    first = ", ".join(str(i) for i in np.flatnonzero(b > a)[:2])
    assert f"- cme_snli: B better on {row.difference.wins}: {first}, ...; A better on" in text
    assert "model aaaaaaaa" in text
    assert "Items that flipped" not in comparison_markdown(found, flips=0)
    assert [pvalue(p) for p in (0.0004, 0.0126, 1.0)] == ["<0.001", "0.013", "1.000"]


def test_csv_holds_every_row_and_every_flip(runs: list[RunView]) -> None:
    found = compare_runs(*runs)
    rows = list(csv.DictReader(io.StringIO(comparisons_csv(found))))
    assert [r["kind"] for r in rows] == ["domain"] * 2 + ["task"] * 4 + ["average"]
    assert float(rows[-1]["difference"]) == found[0].average.difference.value
    flips = list(csv.DictReader(io.StringIO(flips_csv(found))))
    assert len(flips) == sum(r.difference.wins + r.difference.losses for r in found[0].tasks)
    assert flips[0]["target"] == f"gold {flips[0]['id']}"


def test_clusters_are_flipped_as_one(tmp_path: Path) -> None:
    """Twenty passages of ten questions that stand or fall together: 200 items are worth twenty."""
    rng = np.random.default_rng(3)
    docs = [{"title": f"p{i // 10}"} for i in range(200)]
    better = np.repeat(rng.random(20) < 0.65, 10) * 1.0
    a = make_run(tmp_path / "a", {"cme_squad": MadeTask(1 - better, "reading", "squad", docs=docs)})
    b = make_run(tmp_path / "b", {"cme_squad": MadeTask(better, "reading", "squad", docs=docs)})
    (plain,), (grouped,) = compare_runs(a, b), compare_runs(a, b, cluster="title")
    assert plain.average.p < 1e-3
    wins = int(better.sum()) // 10
    assert grouped.average.p == pytest.approx(stats.binomtest(wins, 20).pvalue, abs=0.02)
    assert grouped.average.difference.stderr > 2.5 * plain.average.difference.stderr
    assert "clustered by title: cme_squad" in grouped.notes
    with pytest.raises(UsageError, match="--cluster passage: no task has this field"):
        compare_runs(a, b, cluster="passage")


ONE = {"cme_a": MadeTask([1.0, 0.0, 1.0])}


@pytest.mark.parametrize(
    ("task", "identity", "message"),
    [
        (MadeTask([1.0, 0.0, 1.0]), {"engine": "vllm"}, "engines differ: hf, vllm"),
        (MadeTask([1.0, 0.0, 1.0]), {"dtype": "bfloat16"}, "dtypes differ: bfloat16, float32"),
        (MadeTask([1.0, 0.0, 1.0], planned={"hash": "e" * 64}), {}, "task versions differ in cme_a"),
        (MadeTask([1.0, 0.0, 1.0], planned={"prompt_format": "chat"}), {}, "prompt formats differ in cme_a"),
        (MadeTask([1.0, 0.0]), {}, "item sets differ in cme_a"),
        (
            MadeTask([1.0, 0.0, 1.0], targets=["gold 0", "gold 1", "other"]),
            {},
            "gold answers differ in cme_a: 1 items",
        ),
    ],
)
def test_unlike_runs_are_refused_or_footnoted(
    tmp_path: Path, task: MadeTask, identity: dict[str, Any], message: str
) -> None:
    a = make_run(tmp_path / "a", ONE)
    b = make_run(tmp_path / "b", {"cme_a": task}, identity=identity)
    with pytest.raises(UsageError, match=rf"{message}.*--allow-mixed"):
        compare_runs(a, b)
    (found,) = compare_runs(a, b, allow_mixed=True)
    assert any(note.startswith("MIXED:") and message in note for note in found.notes)
    assert "MIXED:" in comparison_markdown(found)


def test_mixed_runs_are_paired_on_the_ids_they_share(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {"cme_a": MadeTask([1.0] * 10 + [0.0] * 10)})
    b = make_run(tmp_path / "b", {"cme_a": MadeTask([1.0] * 15)})
    (found,) = compare_runs(a, b, allow_mixed=True)
    assert found.average.difference.n == 15
    assert found.average.difference.wins == 5
    assert "MIXED: sample ids differ in cme_a: 5 items are not in all runs" in found.notes


def test_limited_runs_are_watermarked(tmp_path: Path) -> None:
    """Of 50 rows a limit of 3 keeps three ids of a fixed shuffle; records of other ids do not count."""
    from cme_bench.prompts.items import limited_ids

    ids = [*limited_ids(range(50), 3)]
    more = next(i for i in range(50) if i not in ids)
    task = MadeTask([1.0, 0.0, 1.0, 1.0], ids=[*ids, more], planned={"rows": 50, "limit": 3, "n": 3})
    a, b = make_run(tmp_path / "a", {"cme_a": task}), make_run(tmp_path / "b", {"cme_a": task})
    (found,) = compare_runs(a, b)
    assert found.average.difference.n == 3
    assert found.notes[0] == "LIMITED: only 3 items of some tasks (a fixed shuffle)."


def test_missing_and_stale_records_are_usage_errors(tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / name, ONE) for name in "ab")
    content = read_json(b.folder / "run.json")
    content["tasks"]["cme_a"]["hash"] = "e" * 64
    write_json(b.folder / "run.json", content)
    with pytest.raises(UsageError, match="item 0 was scored under another version of cme_a"):
        compare_runs(a, open_run(b.folder), allow_mixed=True)
    file = samples_file(a.folder, "cme_a")
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(UsageError, match="1 of 3 items are missing"):
        compare_runs(a, open_run(b.folder), allow_mixed=True)
    file.unlink()
    with pytest.raises(UsageError, match="per-item records are needed"):
        compare_runs(a, open_run(b.folder), allow_mixed=True)
