"""``cme-bench contamination``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cme_bench.cli import app
from cme_bench.cli.help import EVALUATE, command
from cme_bench.cli.shared import RunFolder
from cme_bench.util.options import Offline, Option

_EXAMPLES = {
    "find evaluated items that were trained on": "cme-bench contamination runs/mine --train ./data",
    "find them in a corpus of yours": "cme-bench contamination runs/mine --train corpus.jsonl",
}


@command(app, _EXAMPLES, panel=EVALUATE)
def contamination(
    run: RunFolder,
    train: Annotated[
        str,
        Option(
            "The training rows, as for `train --data`: CME of 'hub', 'mini' or a folder, or rows of your own "
            "(a file, a folder, hub:OWNER/NAME); or a .txt file."
        ),
    ],
    datasets: Annotated[str, Option("Datasets of CME, as for `train`.")] = "all",
    n: Annotated[int, Option("Words of an n-gram.", flag="-n", minimum=5)] = 13,
    offline: Offline = False,
) -> None:
    """Find the evaluated items that share a 13-gram with the training texts, and score without them.

    Writes contamination.csv and contamination.json beside the run's scores.
    """
    from rich.console import Console
    from rich.table import Table

    from cme_bench.experiments.contaminated_run import check_run
    from cme_bench.experiments.training_texts import training_texts
    from cme_bench.util.terminal import markup

    texts = training_texts(train, datasets=datasets, offline=offline)
    named = train if Path(train).expanduser().is_file() else f"{train} ({datasets})"
    tasks = check_run(run, texts, training=named, n=n)
    table = Table(title=f"items that share a {n}-gram with {markup(train)}", show_edge=False)
    for name in ("task", "items", "checked", "overlapping", "%", "score", "without them"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for t in tasks:
        share = f"{100 * len(t.overlapping) / t.checked:.1f}" if t.checked else "-"
        scores = ("-" if e is None else f"{100 * e.value:.2f}" for e in (t.score, t.clean))
        table.add_row(markup(t.task), str(t.items), str(t.checked), str(len(t.overlapping)), share, *scores)
    console = Console()
    console.print(table)
    written = f"Written to {run}/contamination.csv and .json"
    console.print(markup(written), soft_wrap=True, highlight=False)
