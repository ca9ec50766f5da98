"""``cme-bench contamination``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli import app


@app.command(
    epilog="Examples:  cme-bench contamination runs/mine --train ./data   |   "
    "cme-bench contamination runs/mine --train corpus.jsonl"
)
def contamination(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    train: Annotated[
        str,
        typer.Option(
            help="What was trained on: the CME mixture of 'hub', 'mini' or a folder (as for `train --data`), "
            "or a .jsonl or .txt file."
        ),
    ],
    datasets: Annotated[str, typer.Option(help="Datasets of the mixture, as for `train`.")] = "all",
    n: Annotated[int, typer.Option("-n", min=5, help="Words of an n-gram.")] = 13,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
) -> None:
    """Which evaluated items share a 13-gram with the training texts, and the scores without them.

    Writes contamination.csv and contamination.json beside the run's scores.
    """
    from rich.console import Console
    from rich.table import Table

    from cme_bench.analysis.contaminated_run import check_run, file_texts
    from cme_bench.terminal import markup

    file = Path(train).expanduser()
    texts = file_texts(file) if file.is_file() else _mixture_texts(train, datasets, offline)
    found = check_run(run, texts, training=train if file.is_file() else f"{train} ({datasets})", n=n)
    table = Table(title=f"items that share a {n}-gram with {markup(train)}", show_edge=False)
    for name in ("task", "items", "checked", "overlapping", "%", "score", "without them"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for t in found:
        share = f"{100 * len(t.overlapping) / t.checked:.1f}" if t.checked else "-"
        scores = ("-" if e is None else f"{100 * e.value:.2f}" for e in (t.score, t.clean))
        table.add_row(markup(t.task), str(t.items), str(t.checked), str(len(t.overlapping)), share, *scores)
    console = Console()
    console.print(table)
    written = f"Written to {run}/contamination.csv and .json"
    console.print(markup(written), soft_wrap=True, highlight=False)


def _mixture_texts(train: str, datasets: str, offline: bool) -> Iterator[str]:
    """Every text of the rows that ``cme-bench train --data`` would train on."""
    from cme_bench.analysis.contamination import row_texts
    from cme_bench.tasks.open_source import open_source
    from cme_bench.tasks.suite import load_suite
    from cme_bench.training.mixture import load_training_set
    from cme_bench.training.templates import load_templates, select_datasets

    source = open_source(train, offline=offline)
    for template in select_datasets(load_templates(load_suite()), datasets):
        for part in load_training_set(template, source).parts:
            for index in part.kept:
                yield from row_texts(part.table[int(index)])
