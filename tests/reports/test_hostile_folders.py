"""Run folders made to do harm, and what reads them: a result or one line, and nothing of outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from cme_bench.reports.compare import compare_runs
from cme_bench.reports.compare_text import flips_csv
from cme_bench.reports.page.render import render_page
from cme_bench.reports.runs import open_run
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import render
from cme_bench.util.errors import CmeError
from tests.reports.test_page import unpacked_blocks
from tests.support.folders import make_run
from tests.support.hostile import ATTACKS, MARKUP, SECRET, TASKS, outside


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return outside(tmp_path_factory.mktemp("outside") / "secret")


@pytest.fixture(params=ATTACKS)
def folder(request: pytest.FixtureRequest, tmp_path: Path, secret: Path) -> Path:
    run = make_run(tmp_path / "run", TASKS).folder
    ATTACKS[request.param](run, secret)
    return run


def tables(folder: Path, whole: Path) -> str:
    return "".join(render(comparison_tables([open_run(folder)]), fmt) for fmt in ("md", "html"))


def page(folder: Path, whole: Path) -> str:
    text = render_page([open_run(folder), open_run(whole)], allow_mixed=True)
    return text + unpacked_blocks(text)


def flips(folder: Path, whole: Path) -> str:
    return flips_csv(compare_runs(open_run(whole), open_run(folder), allow_mixed=True))


@pytest.mark.timeout(300)
def test_readers_show_a_result_or_one_line(folder: Path, tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole", TASKS).folder
    for reader in (tables, page, flips):
        try:
            text = reader(folder, whole)
        except CmeError as error:
            text = str(error)
            assert "\n" not in text and len(text) < 2000
        assert SECRET not in text
        assert MARKUP not in text.split('<script type="application')[0]
