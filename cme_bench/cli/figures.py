"""``cme-bench figures``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli import app
from cme_bench.terminal import say


@app.command(epilog="Example:  cme-bench figures runs/* results/bench/train_step-*.json router/ -o figures")
def figures(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, training folders, folders of cme-bench router, JSON files of benchmarks."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for png, pdf and csv files.")],
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Draw runs that differ together; the figures say so.")
    ] = False,
) -> None:
    """Draw the paper's figures 1, 3a, 3b, 4a, 4b, 5b and scores by domain, as far as there are inputs."""
    from cme_bench.paths import make_out
    from cme_bench.reports.figures.inputs import read_inputs
    from cme_bench.reports.figures.write import write_figures

    found = read_inputs(inputs)
    make_out(out)
    for line in write_figures(found, out, allow_mixed=allow_mixed):
        say(line)
    say(f"Figures are in {out}")
