"""docs/tasks.md is the page of the task files as they are, and says what is ours."""

from __future__ import annotations

from pathlib import Path

from cme_bench.reports.tasks_page import tasks_page
from cme_bench.tasks.suite import load_suite

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == tasks_page(load_suite()), "run `make docs`"


def test_every_task_and_dataset_is_on_it() -> None:
    text, suite = PAGE.read_text(), load_suite()
    for spec in suite.tasks.values():
        assert f"| `{spec.name}` |" in text
        assert str(spec.metadata["licence"]) in text
        assert str(spec.config["dataset_path"]) in text
    assert "22 datasets in 11 domains: 25 generated and 20 likelihood tasks" in text


def test_it_says_what_the_paper_says_and_what_is_ours() -> None:
    text = " ".join(PAGE.read_text().split())
    assert "From the TeamLoRA paper (arXiv 2408.09856)" in text
    assert "Everything else on this page is **our reconstruction**" in text
