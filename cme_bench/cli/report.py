"""``cme-bench report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cme_bench
from cme_bench.cli import app
from cme_bench.cli.help import READ, command
from cme_bench.cli.shared import AllowMixed
from cme_bench.util.options import Option
from cme_bench.util.terminal import say

_EXAMPLES = {
    "see tables, tests and every item side by side in one HTML file": (
        "cme-bench report runs/base runs/adapted -o report.html"
    )
}


@command(app, _EXAMPLES, panel=READ)
def report(
    runs: Annotated[tuple[Path, ...], Option("Run folders.", argument=True)],
    output: Annotated[Path, Option("The HTML file.", short="-o")],
    title: Annotated[str, Option("Stands at the top.")] = "CME report",
    allow_mixed: AllowMixed = False,
) -> None:
    """Write one HTML file, no network needed: summary, significance, domains, every item side by side.

    It holds the text of all items: mind the datasets' licences before you pass it on.
    """
    from cme_bench.reports.page.render import render_page
    from cme_bench.util.files import write_text

    views = [cme_bench.open_run(folder).view for folder in runs]
    page = render_page(views, title=title, allow_mixed=allow_mixed)
    write_text(output, page)
    say(f"The report is in {output} ({len(page.encode()) / 2**20:.1f} MiB)")
