"""What a model, an adapter or a data set says stays text in every format, and on a terminal."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from cme_bench.reports.card import model_card
from cme_bench.reports.compare import compare_runs
from cme_bench.reports.compare_text import comparison_markdown, comparisons_csv, flips_csv
from cme_bench.reports.page.render import render_page
from cme_bench.reports.run_summary import summary_table
from cme_bench.reports.runs import RunView
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import render
from cme_bench.runs.display import LiveBar
from cme_bench.util.terminal import say
from tests.support.folders import ADAPTER, MadeTask, make_run

ATTACKS = (
    "<script>alert(1)</script>",
    "</script><!-- <b onclick='x'>",
    '" onmouseover="alert(1)" x=\'',
    "\u2028alert(1)\u2029",
    "\\input{/etc/passwd} $x^2$ #1 %",
    "[bold]x[/bold] [/] [link=file:///etc/passwd]x[/link]",
    "\x1b]0;owned\x07\x1b[2J\x1b[8m\x9b31m",
    "\u202eafter\u2066",
    '=HYPERLINK("http://evil","x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3\n| a | b |\n\r@SUM(1)",
)


@pytest.fixture(params=range(len(ATTACKS)))
def attack(request: pytest.FixtureRequest) -> str:
    return ATTACKS[request.param]


@pytest.fixture
def runs(tmp_path: Path, attack: str) -> list[RunView]:
    """Two runs whose names, texts and answers are the attack; every item flips."""
    task = {"cme_a": MadeTask([0.0] * 4, texts=[attack] * 4, targets=[attack] * 4, docs=[{"q": attack}] * 4)}
    other = {"cme_a": MadeTask([1.0] * 4, texts=[attack + "!"] * 4, targets=[attack] * 4)}
    return [
        make_run(tmp_path / "a", task, name=attack),
        make_run(tmp_path / "b", other, adapter=ADAPTER | {"name": attack, "method": attack}),
    ]


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.attributes |= {name for name, _ in attrs}


def steers(text: str) -> bool:
    return re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", text) is not None


def test_html_gets_no_element_and_no_attribute(runs: list[RunView]) -> None:
    for text in (render(comparison_tables(runs), "html"), render_page(runs)):
        page = Elements(text)
        assert not set(page.found) & {"b", "img", "a"} or text.startswith("<!doctype")
        assert not {name for name in page.attributes if name.startswith("on")}
    table = Elements(render(comparison_tables(runs), "html")).found
    assert table.count("script") == 0
    assert table.count("tr") == 3


def test_markdown_has_no_markup_and_no_new_row(runs: list[RunView]) -> None:
    table = render(comparison_tables(runs), "md")
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    comparison = "".join(comparison_markdown(c) for c in compare_runs(*runs))
    for text in (table.split("\n\n")[1], comparison):
        assert not re.search(r"<(?!/?u>)", text)
        assert not steers(text)


def test_latex_has_no_command_of_theirs(runs: list[RunView]) -> None:
    text = render(comparison_tables(runs), "latex")
    assert r"\input" not in text
    assert not re.search(r"(?<!\\)#", text)
    assert text.count("\n%") == 0, "no line of ours is commented out but the first"
    assert not steers(text)


def test_csv_has_no_formula(runs: list[RunView]) -> None:
    comparisons = compare_runs(*runs)
    for text in (
        render(comparison_tables(runs), "csv"),
        comparisons_csv(comparisons),
        flips_csv(comparisons),
    ):
        rows = list(csv.reader(io.StringIO(text)))
        assert len({len(row) for row in rows}) == 1
        for cell in (cell for row in rows for cell in row if cell.lstrip()[:1] in tuple("=+-@")):
            float(cell)


def test_a_terminal_is_not_steered(
    runs: list[RunView], attack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / attack.replace("/", "_").replace("\x00", "")[:60]
    runs[0].folder.rename(folder)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200)
    console.print(summary_table(folder))
    with Progress(console=console) as progress:
        LiveBar(progress).note(f"cme-bench run {attack}: preparing")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "")
    assert not steers(shown)
    assert "\x1b[2J" not in screen.getvalue()
    say(attack)
    assert not steers(capsys.readouterr().out)


def test_a_model_card_stays_yaml(runs: list[RunView], attack: str) -> None:
    import yaml

    _, block, _ = model_card(runs[1]).split("---\n")
    assert yaml.safe_load(block)["model-index"][0]["name"] == f"smollm2 + {attack}"
