"""``cme-bench table``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cme_bench
from cme_bench.cli import app
from cme_bench.cli.help import READ, command
from cme_bench.cli.shared import AllowMixed, Output, print_or_write
from cme_bench.util.options import TABLE_FORMAT_UNKNOWN, Option, TableFormat

_EXAMPLES = {
    "compare runs in the paper's layout": "cme-bench table runs/*",
    "the same as LaTeX, with the published rows": (
        "cme-bench table runs/base runs/adapted --paper --format latex -o table.tex"
    ),
}


@command(app, _EXAMPLES, panel=READ)
def table(
    runs: Annotated[tuple[Path, ...], Option("Run folders, a row each.", argument=True)],
    fmt: Annotated[
        TableFormat,
        Option("latex is booktabs, csv is tidy.", flag="--format", noun=TABLE_FORMAT_UNKNOWN),
    ] = "md",
    se: Annotated[bool, Option("Show standard errors.")] = True,
    n: Annotated[bool, Option("Show the number of items of each score.")] = False,
    paper: Annotated[bool, Option("Add the published rows, marked as on another base model.")] = False,
    tests: Annotated[
        bool, Option("Mark scores not significantly different from the best (reads all items).")
    ] = True,
    pool_seeds: Annotated[
        bool, Option("One row for runs that differ in the adapter's training seed only.")
    ] = False,
    columns: Annotated[
        int | None, Option("At most N scores side by side; default: 6 in LaTeX, all elsewhere.", minimum=1)
    ] = None,
    brief: Annotated[bool, Option("Show names and scores only; csv always has all columns.")] = False,
    allow_mixed: AllowMixed = False,
    output: Output = None,
) -> None:
    """Compare runs in the paper's layout: method x domain, best in bold, a dagger where it may be chance."""
    tables = cme_bench.table(runs, paper=paper, tests=tests, pool_seeds=pool_seeds, allow_mixed=allow_mixed)
    print_or_write(tables.render(fmt, se=se, n=n, columns=columns, brief=brief), output, "The table")
