"""The register of README, docs and docstrings: short sentences, the command first, commits in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
FIRST_SCREEN = 45
_NO_PROSE = re.compile(r"\||#|!\[|<")
_ITEM = re.compile(r"(\*|-|\d+\.) ")
_COMMIT = re.compile(r"\b(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{12}\b|commit [0-9a-f]{7,}")


def sentences(markdown: str) -> Iterator[str]:
    """Yield the sentences of a page; code, tables and headings are none."""
    markdown = re.sub(r"<!--.*?-->|^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    paragraphs = [""]
    for line in markdown.splitlines():
        text = line.strip()
        if not text or _NO_PROSE.match(text) or line.startswith("    "):
            paragraphs.append("")
        elif _ITEM.match(text):
            paragraphs.append(_ITEM.sub("", text, count=1))
        else:
            paragraphs[-1] += " " + text
    for paragraph in paragraphs:
        plain = re.sub(r"`[^`]*`", "code", paragraph)
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        yield from re.split(r"(?<=[.?!])[*)]*\s+(?=\W*\w)", plain)


def too_long(page: Path, most: int) -> list[str]:
    """Return the sentences of more than ``most`` words."""
    every = sentences(page.read_text(encoding="utf-8"))
    return [s for s in every if sum(bool(re.search(r"\w", word)) for word in s.split()) > most]


def test_a_sentence_ends_where_it_ends() -> None:
    page = (
        "# No prose\n\nOne `a. b` [two](x.y). Three\nfour (five.) Six.\n* seven\n\n| no. No |\n\n    no. No\n"
    )
    assert [s.strip() for s in sentences(page) if s] == [
        "One code two.",
        "Three four (five.",
        "Six.",
        "seven",
    ]


def test_no_sentence_of_the_readme_has_more_than_30_words() -> None:
    assert too_long(README, 30) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_sentence_of_a_page_has_more_than_40_words(page: Path) -> None:
    assert too_long(page, 40) == []


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_commits_stand_in_the_results_only(page: Path) -> None:
    text = re.sub(r"<!-- (\S+): written.*?<!-- end of \1 -->", "", page.read_text("utf-8"), flags=re.DOTALL)
    if page.name != "results.md":
        assert _COMMIT.findall(text) == []


def test_the_first_screen_has_install_command_table_and_python() -> None:
    screen = "\n".join(README.read_text(encoding="utf-8").splitlines()[:FIRST_SCREEN])
    for part in ("make setup", "cme-bench run", "cme-bench table", "```python", "**What CME is here.**"):
        assert part in screen, part
    table = next(line for line in screen.splitlines() if line.startswith("|"))
    assert table.count("|") == 7


def test_the_index_and_the_site_list_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        if page.name != "index.md":
            assert f"({page.name})" in index, page.name
            assert f" {page.name}\n" in site, page.name


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", README.read_text(encoding="utf-8")):
        assert target.startswith("http") or (ROOT / target).exists(), target


def _docstrings(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def test_a_docstring_says_what_a_thing_is_or_does() -> None:
    for file in (ROOT / "cme_bench").rglob("*.py"):
        for text in _docstrings(file):
            assert not text.startswith("What "), f"{file.relative_to(ROOT)}: {text[:60]}"
