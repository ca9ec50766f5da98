"""``cme-bench report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli import app
from cme_bench.terminal import say


@app.command(epilog="Example:  cme-bench report runs/base runs/adapted -o report.html")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")],
    title: Annotated[str, typer.Option(help="Stands at the top.")] = "CME report",
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Compare runs that differ; each difference becomes a note.")
    ] = False,
) -> None:
    """Write one HTML file, no network needed: summary, significance, domains, every item side by side.

    It holds the text of all items: mind the datasets' licences before you pass it on.
    """
    from cme_bench.reports.page.render import render_page
    from cme_bench.reports.runs import open_run
    from cme_bench.util.files import write_text

    page = render_page([open_run(folder) for folder in runs], title=title, allow_mixed=allow_mixed)
    write_text(output, page)
    say(f"The report is in {output} ({len(page.encode()) / 2**20:.1f} MiB)")
