"""docs/cli.md is what the command line says."""

from __future__ import annotations

import re
from pathlib import Path

from cme_bench.cli.reference import commands, page

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_current() -> None:
    import cme_bench.adapters  # noqa: F401 - what else is imported must not matter

    assert (DOCS / "cli.md").read_text(encoding="utf-8") == page(), "run: make docs"


def test_every_command_has_its_section_and_every_link_leads_to_one() -> None:
    text = page()
    sections = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert sorted(sections) == sorted(name for _, name, _ in commands())
    anchors = {section.replace(" ", "-") for section in sections}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == anchors
