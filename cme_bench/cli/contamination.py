"""``cme-bench contamination``."""

from __future__ import annotations

from collections.abc import Iterator
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
            "The training texts: the CME mixture of 'hub', 'mini' or a folder (as for `train --data`), or a "
            ".jsonl or .txt file."
        ),
    ],
    datasets: Annotated[str, Option("Datasets of the mixture, as for `train`.")] = "all",
    n: Annotated[int, Option("Words of an n-gram.", flag="-n", minimum=5)] = 13,
    offline: Offline = False,
) -> None:
    """Find the evaluated items that share a 13-gram with the training texts, and score without them.

    Writes contamination.csv and contamination.json beside the run's scores.
    """
    from rich.console import Console
    from rich.table import Table

    from cme_bench.experiments.contaminated_run import check_run, file_texts
    from cme_bench.util.terminal import markup

    file = Path(train).expanduser()
    texts = file_texts(file) if file.is_file() else _mixture_texts(train, datasets, offline)
    tasks = check_run(run, texts, training=train if file.is_file() else f"{train} ({datasets})", n=n)
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


def _mixture_texts(train: str, datasets: str, offline: bool) -> Iterator[str]:
    """Yield every text of the rows that ``cme-bench train --data`` would train on."""
    from cme_bench.experiments.contamination import row_texts
    from cme_bench.tasks.open_source import open_source
    from cme_bench.tasks.suite import load_suite
    from cme_bench.training.mixture import load_training_set
    from cme_bench.training.templates import load_templates, select_datasets

    source = open_source(train, offline=offline)
    for template in select_datasets(load_templates(load_suite()), datasets):
        for part in load_training_set(template, source).parts:
            for index in part.kept:
                yield from row_texts(part.table[int(index)])
