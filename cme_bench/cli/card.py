"""``cme-bench card``."""

from __future__ import annotations

import cme_bench
from cme_bench.cli import app
from cme_bench.cli.help import READ, command
from cme_bench.cli.shared import Output, RunFolder, print_or_write

_EXAMPLES = {
    "add a run's scores to the model card of an adapter": "cme-bench card runs/llama-team >> README.md"
}


@command(app, _EXAMPLES, panel=READ)
def card(run: RunFolder, output: Output = None) -> None:
    """Print a run's scores as the metrics block (model-index) of a Hugging Face model card."""
    from cme_bench.reports.card import model_card

    print_or_write(model_card(cme_bench.open_run(run).view), output, "The block")
