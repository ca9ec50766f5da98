"""``cme-bench figures``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cme_bench.cli import app
from cme_bench.cli.help import READ, command
from cme_bench.cli.shared import AllowMixed
from cme_bench.util.options import Option
from cme_bench.util.terminal import say

_EXAMPLES = {
    "draw the paper's figures, each with its numbers as csv": (
        "cme-bench figures runs/* results/bench/train_step-*.json router/ -o figures"
    )
}


@command(app, _EXAMPLES, panel=READ)
def figures(
    inputs: Annotated[
        tuple[Path, ...],
        Option(
            "Run folders, training folders, folders of cme-bench router, JSON files of benchmarks.",
            argument=True,
        ),
    ],
    out: Annotated[Path, Option("Folder for png, pdf and csv files.", short="-o")],
    allow_mixed: AllowMixed = False,
) -> None:
    """Draw the paper's figures 1, 3a, 3b, 4a, 4b, 5b and scores by domain, as far as there are inputs."""
    from cme_bench.reports.figures.inputs import read_inputs
    from cme_bench.reports.figures.write import write_figures
    from cme_bench.util.paths import make_out

    read = read_inputs(list(inputs))
    make_out(out)
    for line in write_figures(read, out, allow_mixed=allow_mixed):
        say(line)
    say(f"Figures are in {out}")
