"""``cme-bench card``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli import app
from cme_bench.terminal import say


@app.command(epilog="Example:  cme-bench card runs/llama-team >> README.md")
def card(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here instead.")] = None,
) -> None:
    """Print a run's scores as the metrics block (model-index) of a Hugging Face model card."""
    from cme_bench.reports.card import model_card
    from cme_bench.reports.runs import open_run
    from cme_bench.util.files import write_text

    text = model_card(open_run(run))
    if output is None:
        say(text, end="")
    else:
        write_text(output, text)
        say(f"The block is in {output}")
