"""``cme-bench compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli import app
from cme_bench.terminal import say


@app.command(
    epilog="Examples:  cme-bench compare runs/base runs/adapted   |   cme-bench compare runs/zero runs/five "
    "--allow-mixed --by task --flips-file flips.csv"
)
def compare(
    a: Annotated[Path, typer.Argument(help="Run folder A, the baseline.")],
    b: Annotated[Path, typer.Argument(help="Run folder B; differences are B - A.")],
    by: Annotated[str, typer.Option(help="Rows: domain or task.")] = "domain",
    fmt: Annotated[str, typer.Option("--format", help="md, or csv (domains, tasks and the average).")] = "md",
    flips: Annotated[
        int, typer.Option(min=0, help="Name N items a task that flipped, each way; 0: none.")
    ] = 5,
    flips_file: Annotated[
        Path | None, typer.Option(help="Write every item that flipped, with both answers, as csv.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Items with one value of this field (a passage) are one draw."),
    ] = None,
    mid_p: Annotated[
        bool, typer.Option("--mid-p", help="McNemar's mid-p: closer to its level than the exact p.")
    ] = False,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Compare runs that differ; each difference becomes a note.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here instead.")] = None,
) -> None:
    """Compare two runs item by item: difference, interval, adjusted p, wins and losses, detectable effect."""
    from cme_bench.errors import UsageError, did_you_mean
    from cme_bench.reports.compare import compare_runs
    from cme_bench.reports.compare_text import comparison_markdown, comparisons_csv, flips_csv
    from cme_bench.reports.runs import open_run
    from cme_bench.util.files import write_text

    for option, value, known in (("--by", by, ("domain", "task")), ("--format", fmt, ("md", "csv"))):
        if value not in known:
            raise UsageError(f"{option} {value}: one of {', '.join(known)}{did_you_mean(value, known)}")
    found = compare_runs(open_run(a), open_run(b), allow_mixed=allow_mixed, cluster=cluster, mid_p=mid_p)
    if fmt == "csv":
        text = comparisons_csv(found) + "\n"
    else:
        text = "\n\n".join(comparison_markdown(c, by=by, flips=flips) for c in found) + "\n"
    if output is None:
        say(text, end="")
    else:
        write_text(output, text)
        say(f"The comparison is in {output}")
    if flips_file is not None:
        write_text(flips_file, flips_csv(found) + "\n")
        say(f"The items that flipped are in {flips_file}")
