"""Tables as pure functions of run folders: layout, marks, notes and refusals."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cme_bench.reports.cells import FIXED, duration
from cme_bench.reports.grids import latex_escape, markdown_escape
from cme_bench.reports.runs import RunView, open_run
from cme_bench.reports.seeds import pool_seeds
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import render
from cme_bench.runs.store import samples_file
from cme_bench.util.errors import UsageError
from cme_bench.util.files import write_json
from tests.support.folders import ADAPTER, MadeTask, make_run


def answers(right: int, n: int = 100) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


def tasks(nli: int, science: int, **planned: Any) -> dict[str, MadeTask]:
    return {
        "cme_a": MadeTask(answers(nli), "nli", "a", planned=planned),
        "cme_b": MadeTask(answers(science), "science", "b", planned=planned),
    }


@pytest.fixture
def runs(tmp_path: Path) -> list[RunView]:
    """The third run differs from the second by one item of one domain."""
    return [
        make_run(tmp_path / "base", tasks(50, 25)),
        make_run(tmp_path / "t32", tasks(40, 65), adapter=ADAPTER),
        make_run(tmp_path / "t16", tasks(40, 64), adapter=ADAPTER | {"name": "t16", "rank": 16}),
    ]


def test_markdown_is_the_golden_one(runs: list[RunView]) -> None:
    text = render(comparison_tables(runs), "md", with_se=False)
    lines = text.splitlines()
    assert lines[0] == "**CME, generated: score in %, macro mean over 2 domains**"
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines[2:7]]
    assert cells[0] == [*FIXED, "nli", "science", "average"]
    assert cells[2] == "smollm2 base no – – 0 **50.00** 25.00 37.50".split()
    assert cells[3][1:] == [
        "teamlora",
        "yes",
        "32",
        "1.5 h",
        "2.71",
        "<u>40.00</u>",
        "**65.00**",
        "**52.50**",
    ]
    assert cells[4][3:] == ["16", "1.5 h", "2.71", "<u>40.00</u>", "<u>64.00</u>†", "<u>52.00</u>†"]
    assert [row[0] for row in cells[2:]] == ["smollm2", "smollm2 + t32", "smollm2 + t16"]
    assert "documented reconstruction" in text
    assert "- smollm2: model aaaaaaaa, hf float32, tasks" in text
    assert "- smollm2 + t32: model aaaaaaaa, adapter bbbbbbbb, hf float32" in text
    assert "† not significantly different from the best" in text


def test_standard_errors_and_n_on_demand(runs: list[RunView]) -> None:
    tables = comparison_tables(runs)
    assert "**50.00 ± 5.03**" in render(tables, "md")
    assert "**50.00 ± 5.03 (100)**" in render(tables, "md", with_n=True)
    assert "±" not in render(tables, "md", with_se=False).split("- CME")[0]


def test_one_run_has_nothing_to_be_best_of(runs: list[RunView]) -> None:
    (table,) = comparison_tables(runs[:1])
    assert not any(cell.best or cell.second or cell.dagger for row in table.rows for cell in row)


def test_a_dagger_is_a_failed_test_against_the_best(tmp_path: Path) -> None:
    """Two runs trail the best by the same 20 items' worth; only one of them on all of the same items."""
    rng = np.random.default_rng(0)
    base = (rng.random(400) < 0.5).astype(float)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:20]] = 1
    runs = [
        make_run(tmp_path / name, {"cme_a": MadeTask(list(scores))})
        for name, scores in (("best", better), ("subset", base), ("shuffled", rng.permutation(base)))
    ]
    (table,) = comparison_tables(runs)
    assert [row[-1].dagger for row in table.rows] == [False, False, True]


def test_without_records_there_are_no_daggers_and_a_note_says_so(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, tasks(50, 40 + k), records=k != 1) for k, name in enumerate(("one", "two"))
    ]
    (table,) = comparison_tables(runs)
    assert not any(cell.dagger for row in table.rows for cell in row)
    assert f"No significance tests: no per-item records in {tmp_path / 'two'}." in table.notes


def test_a_metric_that_is_no_mean_over_items_is_shown_but_not_tested(tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        run = make_run(tmp_path / name, tasks(50, 40))
        file = samples_file(run.folder, "cme_b")
        file.write_bytes(file.read_bytes().replace(b'{"acc":1.0}', b'{"acc":[1,0]}'))
        runs.append(run)
    (table,) = comparison_tables(runs)
    assert not any(cell.dagger for row in table.rows for cell in row)
    assert any("No significance tests: cme_b: acc is no mean over items" in note for note in table.notes)


def test_published_rows_are_marked_and_never_the_best(runs: list[RunView]) -> None:
    text = render(comparison_tables(runs, paper=True), "md", with_se=False)
    row = next(line for line in text.splitlines() if "29 h" in line)
    cells = [c.strip() for c in row.strip("|").split("|")]
    assert cells == ["Chinese-LLaMA-2-7B ‡", "teamlora", "yes", "32", "29 h", "2.71", "–", "–", "60.29"]
    assert "‡ published on another base model (Chinese-LLaMA-2-7B; FFN only, 8x A800)" in text
    assert "arXiv 2408.09856" in text
    assert "not checked against it" in text
    assert sum("‡ |" in line for line in text.splitlines()) == 6


def test_wide_tables_are_split_and_repeat_what_identifies_a_row(runs: list[RunView]) -> None:
    blocks = render(comparison_tables(runs), "md", columns=2).split("\n\n")[1:3]
    heads = [[c.strip() for c in block.splitlines()[0].strip("|").split("|")] for block in blocks]
    assert heads == [[*FIXED, "nli", "science"], ["model", "method", "average"]]


def test_a_brief_table_has_names_and_scores_only(runs: list[RunView]) -> None:
    tables = comparison_tables(runs)
    head, _, row = render(tables, "md", brief=True, with_se=False).splitlines()[2:5]
    assert [c.strip() for c in head.strip("|").split("|")] == ["model", "nli", "science", "average"]
    assert len(row.strip("|").split("|")) == 4
    assert render(tables, "csv", brief=True) == render(tables, "csv")


def test_a_brief_table_keeps_the_method_where_rows_share_a_name(runs: list[RunView]) -> None:
    text = render(comparison_tables(runs, paper=True), "md", brief=True)
    assert [c.strip() for c in text.splitlines()[2].split("|")][1:3] == ["model", "method"]


def test_latex_escapes_and_marks(tmp_path: Path, runs: list[RunView]) -> None:
    other = make_run(tmp_path / "odd", tasks(10, 10), name="other_model")
    text = render(comparison_tables([*runs, other], paper=True), "latex")
    assert r"other\_model" in text
    assert r"\textbf{65.00}" in text
    assert r"\underline{64.00}$^\dagger$" in text
    assert r"params \%" in text
    assert r"$^\ddagger$" in text
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert latex_escape("a_b%&{~") == r"a\_b\%\&\{\textasciitilde{}"


@pytest.mark.slow
def test_latex_compiles(tmp_path: Path, runs: list[RunView]) -> None:
    if (
        shutil.which("pdflatex") is None
        or subprocess.run(["kpsewhich", "booktabs.sty"], check=False).returncode
    ):
        pytest.skip("no LaTeX with booktabs on this machine (Debian: texlive-latex-recommended)")
    hostile = r"\input{/etc/passwd} $x_1^2$ #1 ~ 100% & <b>|[é漢–‡†\\"
    many = {f"cme_{d}": MadeTask(answers(50), d, d) for d in "abcdefghijk"}
    wide = [make_run(tmp_path / folder, many, name=hostile) for folder in ("w_1", "w_2")]
    tables = [*comparison_tables(runs, paper=True), *comparison_tables(wide)]
    body = render(tables, "latex", with_n=True)
    document = (
        "\\documentclass{article}\n\\usepackage[utf8]{inputenc}\n\\usepackage{booktabs,graphicx}\n"
        f"\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )
    (tmp_path / "table.tex").write_text(document, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "table.pdf").stat().st_size > 10_000
    assert "Overfull" not in done.stdout


class Cells(HTMLParser):
    """Counts tags; fails the test on any that a table has no use for."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)


def test_html_escapes_what_a_name_holds(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    run = make_run(tmp_path / "r", tasks(50, 20), name=name)
    text = render(comparison_tables([run]), "html")
    cells = Cells()
    cells.feed(text)
    assert "script" not in cells.tags
    assert "&lt;script&gt;" in text
    assert cells.tags.count("tr") == 2
    assert markdown_escape("a|b\n*c*<b>") == "a\\|b \\*c\\*&lt;b&gt;"


def test_csv_is_tidy_over_all_forms(runs: list[RunView]) -> None:
    rows = list(csv.DictReader(io.StringIO(render(comparison_tables(runs, paper=True), "csv"))))
    assert len(rows) == 9 + 6
    best = max(
        (r for r in rows if r["column"] == "average" and r["source"] == "ours"),
        key=lambda r: float(r["value"]),
    )
    assert (best["method"], best["n"], best["best"], best["rank"]) == ("teamlora", "200", "1", "32")
    assert float(best["value"]) == pytest.approx(52.5)
    assert {r["dagger"] for r in rows if r["source"] == "published"} == {"0"}


def test_an_unknown_format_is_a_usage_error(runs: list[RunView]) -> None:
    with pytest.raises(UsageError, match="did you mean 'latex'"):
        render(comparison_tables(runs), "latx")


@pytest.mark.parametrize(
    ("identity", "changes", "planned", "message"),
    [
        ({"dtype": "bfloat16"}, {}, {}, "dtypes differ: bfloat16, float32"),
        ({"engine": "vllm"}, {}, {}, "engines differ: hf, vllm"),
        ({"data": "mini"}, {}, {}, "data sources differ"),
        ({}, {}, {"hash": "e" * 64}, "task versions differ in cme_a, cme_b"),
        ({}, {}, {"rows": 500, "limit": 100}, "item sets differ in cme_a, cme_b"),
        ({}, {}, {"prompt_format": "chat"}, "prompt formats differ in cme_a, cme_b"),
        ({}, {}, {"shots": 5}, "shots differ in cme_a, cme_b"),
        ({}, {"seed": 1}, {"shots": 5}, "seeds of few-shot sampling differ: 0, 1"),
    ],
)
def test_unlike_runs_are_refused_or_footnoted(
    runs: list[RunView],
    tmp_path: Path,
    identity: dict[str, Any],
    changes: dict[str, Any],
    planned: dict[str, Any],
    message: str,
) -> None:
    unlike = make_run(
        tmp_path / "unlike", tasks(10, 10, **planned), records=False, identity=identity, **changes
    )
    with pytest.raises(UsageError, match=message):
        comparison_tables([runs[0], unlike])
    (table,) = comparison_tables([runs[0], unlike], allow_mixed=True)
    assert any(note.startswith("MIXED:") and message in note for note in table.notes)


def test_runs_of_other_tasks_are_refused(runs: list[RunView], tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", {"cme_a": MadeTask(answers(1), "nli", "a")})
    with pytest.raises(UsageError, match="tasks differ: cme_b not in all runs"):
        comparison_tables([runs[0], other])
    (table,) = comparison_tables([runs[0], other], allow_mixed=True)
    assert any("MIXED: tasks differ" in note for note in table.notes)


def test_limits_mini_items_and_unfinished_runs_are_watermarked(tmp_path: Path) -> None:
    planned = {"rows": 500, "limit": 100}
    run = make_run(
        tmp_path / "r", tasks(1, 1, **planned), records=False, identity={"data": "mini"}, finished=False
    )
    (table,) = comparison_tables([run])
    notes = "\n".join(table.notes)
    assert "LIMITED: only 100 items" in notes
    assert "LIMITED: 'mini'" in notes
    assert "UNFINISHED" in notes
    assert "LIMITED: only 100 items" in render([table], "latex")


def test_runs_with_one_name_are_told_apart(tmp_path: Path) -> None:
    zero, five = (
        make_run(tmp_path / n, tasks(1, 1, shots=s), records=False) for n, s in (("z", 0), ("f", 5))
    )
    (table,) = comparison_tables([zero, five], allow_mixed=True)
    assert [row[0].text for row in table.rows] == ["smollm2, 0-shot", "smollm2, 5-shot"]
    again = make_run(tmp_path / "again", tasks(1, 1), records=False)
    (table,) = comparison_tables([zero, again])
    assert [row[0].text for row in table.rows] == ["smollm2 (z)", "smollm2 (again)"]


def test_seeds_of_one_method_become_one_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    runs = [make_run(tmp_path / "base", {"cme_a": MadeTask(answers(50))})]
    for seed in range(3):
        scores = rng.permutation(answers(60 + 5 * seed))
        identity = {"adapter": f"{seed}" * 64}
        adapter = ADAPTER | {"name": f"t32-{seed}", "training_seconds": 3600.0 * (seed + 1)}
        made = {
            "adapter": adapter,
            "identity": identity,
            "commit": "fedcba987654" if seed else "0123456789ab",
        }
        runs.append(make_run(tmp_path / str(seed), {"cme_a": MadeTask(scores)}, **made))
    (table,) = comparison_tables(pool_seeds(runs))
    base, pooled = table.rows
    assert (pooled[0].text, pooled[4].text) == ("smollm2 + teamlora-32, 3 seeds", "2 h")
    assert pooled[-1].value == pytest.approx(65)
    assert pooled[-1].stderr is not None
    assert pooled[-1].stderr > 2.5, "more than the spread of the seeds, 5 / sqrt(3)"
    assert not any(cell.dagger for cell in (*base, *pooled))
    assert any("Rows of several seeds" in note for note in table.notes)
    assert any("Rows of a single seed are not tested" in note for note in table.notes)
    assert any("adapter 00000000 11111111 22222222" in note for note in table.notes)
    assert any("commit 0123456789ab fedcba987654" in note for note in table.notes)
    with pytest.raises(UsageError, match="no two runs share"):
        pool_seeds(runs[:2])
    with pytest.raises(UsageError, match="the very same adapter"):
        pool_seeds([*runs, runs[1]])


CONFIG = {"r": 32, "interaction_init": "identity", "rank_pattern": {}}
TRAINING = {"learning_rate": 2e-4, "max_steps": 100, "data": {"rte": "1" * 64}, "bos": [1]}


def seed_runs(folder: Path, *changes: dict[str, Any]) -> list[RunView]:
    """Runs of adapters that differ in their weights and as told."""
    both = {"config": CONFIG, "training": TRAINING}
    return [
        make_run(
            folder / f"seed{number}",
            {"cme_a": MadeTask(answers(60 + number))},
            adapter=ADAPTER | both | change,
            identity={"adapter": f"{number}" * 64},
        )
        for number, change in enumerate(changes)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"config": CONFIG | {"interaction_init": "normal"}},
            "interaction_init is identity there and normal here",
        ),
        ({"config": CONFIG | {"rank_pattern": {"q": 4}}}, "rank_pattern.q is None there and 4 here"),
        ({"training": TRAINING | {"learning_rate": 1e-3}}, "learning_rate is 0.0002 there and 0.001 here"),
        (
            {"training": TRAINING | {"data": {"rte": "2" * 64}}},
            "data.rte is 11111111 there and 22222222 here",
        ),
        ({"training": TRAINING | {"bos": []}}, r"bos is \[1\] there and \[\] here"),
    ],
)
def test_other_trainings_are_no_seeds(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"seed0 and .*seed2 are no seeds of one training: {message}"):
        pool_seeds(seed_runs(tmp_path, {}, {}, change))


def test_ranks_that_adalora_found_are_no_difference_of_its_seeds(tmp_path: Path) -> None:
    """Its training writes them into the config; of other methods they are a user's choice (above)."""
    runs = [
        {"method": "adalora", "config": CONFIG | {"rank_pattern": {"q": [kept]}}} for kept in (True, False)
    ]
    (whole,) = pool_seeds(seed_runs(tmp_path, *runs))
    assert len(whole.members) == 2


def test_runs_that_record_no_training_are_pooled_with_a_note(tmp_path: Path) -> None:
    (whole,) = pool_seeds(seed_runs(tmp_path / "whole", {}, {}))
    assert not whole.notes
    bare = {"config": None, "training": None}
    pooled = pool_seeds(seed_runs(tmp_path / "bare", {}, bare, {"training": None}))
    (table,) = comparison_tables([*pooled, make_run(tmp_path / "base", {"cme_a": MadeTask(answers(50))})])
    assert "Pooled without comparing the adapters' configs, which are not recorded: seed1." in table.notes
    assert (
        "Pooled without comparing the training arguments, which are not recorded: seed1, seed2."
        in table.notes
    )


def test_pooled_rows_are_tested_over_seeds(tmp_path: Path) -> None:
    """Three methods of three seeds: one as good as the best, one far behind."""
    rng = np.random.default_rng(1)
    hard = rng.random(200)
    runs = []
    for method, rate in (("lora", 0.3), ("moelora", 0.6), ("teamlora", 0.62)):
        for seed in range(3):
            scores = (0.7 * hard + 0.3 * rng.random(200) < rate) * 1.0
            runs.append(
                make_run(
                    tmp_path / f"{method}{seed}",
                    {"cme_a": MadeTask(scores)},
                    adapter=ADAPTER | {"method": method},
                    identity={"adapter": f"{method}{seed}"},
                )
            )
    (table,) = comparison_tables(pool_seeds(runs))
    assert [row[1].text for row in table.rows] == ["lora", "moelora", "teamlora"]
    assert [row[-1].best for row in table.rows] == [False, False, True]
    assert [row[-1].dagger for row in table.rows] == [False, True, False]
    assert any("t test over seeds and items" in note for note in table.notes)


def test_times_are_printed_in_their_unit() -> None:
    assert [duration(s) for s in (12, 90, 5400, 104_400)] == ["12 s", "1.5 min", "1.5 h", "29 h"]


def test_a_folder_without_results_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is .* a run folder"):
        open_run(tmp_path)
    write_json(tmp_path / "run.json", {})
    with pytest.raises(UsageError, match="no task of this run is finished"):
        open_run(tmp_path)
