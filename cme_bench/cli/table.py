"""``cme-bench table``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli import app
from cme_bench.terminal import say


@app.command(
    epilog="Examples:  cme-bench table runs/*   |   cme-bench table runs/base runs/adapted --paper --format "
    "latex -o table.tex"
)
def table(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, a row each.")],
    fmt: Annotated[str, typer.Option("--format", help="md, latex (booktabs), html or csv.")] = "md",
    se: Annotated[bool, typer.Option(help="Show standard errors.")] = True,
    n: Annotated[bool, typer.Option("--n", help="Show the number of items of each score.")] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Add the published rows, marked as on another base model.")
    ] = False,
    tests: Annotated[
        bool, typer.Option(help="Mark scores not significantly different from the best (reads all items).")
    ] = True,
    seeds: Annotated[
        bool,
        typer.Option(
            "--pool-seeds", help="One row for runs that differ in the adapter's training seed only."
        ),
    ] = False,
    columns: Annotated[
        int | None,
        typer.Option(min=1, help="At most N scores side by side; default: 6 in LaTeX, all elsewhere."),
    ] = None,
    brief: Annotated[
        bool, typer.Option("--brief", help="Show names and scores only; csv always has all columns.")
    ] = False,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Compare runs that differ; each difference becomes a note.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here instead.")] = None,
) -> None:
    """Compare runs in the paper's layout: method x domain, best in bold, a dagger where it may be chance."""
    from cme_bench.reports.runs import check_alike, open_run
    from cme_bench.reports.seeds import pool_seeds
    from cme_bench.reports.table import comparison_tables
    from cme_bench.reports.table_text import render
    from cme_bench.util.files import write_text

    views = [open_run(folder) for folder in runs]
    if seeds:
        check_alike(views, allow_mixed=allow_mixed)
        views = pool_seeds(views, allow_mixed=allow_mixed)
    tables = comparison_tables(views, allow_mixed=allow_mixed, paper=paper, tests=tests)
    text = render(tables, fmt, with_se=se, with_n=n, columns=columns, brief=brief)
    if output is None:
        say(text, end="")
    else:
        write_text(output, text)
        say(f"The table is in {output}")
