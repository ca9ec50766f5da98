"""``cme-bench table``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli import app


@app.command(
    epilog="Examples:  cme-bench table runs/*   |   cme-bench table runs/base runs/adapted --format latex"
)
def table(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, a row each.")],
    fmt: Annotated[str, typer.Option("--format", help="md, latex (booktabs) or csv.")] = "md",
    se: Annotated[bool, typer.Option(help="Show standard errors.")] = True,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Compare runs that differ; each difference becomes a note.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here instead.")] = None,
) -> None:
    """Compare runs: method x domain, with parameters, n, standard errors and the best in bold."""
    from cme_bench.reports.runs import open_run
    from cme_bench.reports.table import comparison_tables, render
    from cme_bench.runs.store import write_text

    tables = comparison_tables([open_run(folder) for folder in runs], allow_mixed=allow_mixed)
    text = "\n\n".join(render(t, fmt, with_se=se) for t in tables) + "\n"
    if output is None:
        print(text, end="")
    else:
        write_text(output, text)
        print(f"The table is in {output}")
