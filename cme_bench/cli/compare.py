"""``cme-bench compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import cme_bench
from cme_bench.cli import app
from cme_bench.cli.help import READ, command
from cme_bench.cli.shared import AllowMixed, Output, print_or_write
from cme_bench.util.options import Option
from cme_bench.util.terminal import say

_EXAMPLES = {
    "compare two runs item by item": "cme-bench compare runs/base runs/adapted",
    "the same by task, of runs that differ, with every item that flipped": (
        "cme-bench compare runs/zero runs/five --allow-mixed --by task --flips-file flips.csv"
    ),
}


@command(app, _EXAMPLES, panel=READ)
def compare(
    a: Annotated[Path, Option("Run folder A, the baseline.", argument=True)],
    b: Annotated[Path, Option("Run folder B; differences are B - A.", argument=True)],
    by: Annotated[
        Literal["domain", "task"], Option("What a row is.", noun="--by {value}: one of {known}{hint}")
    ] = "domain",
    fmt: Annotated[
        Literal["md", "csv"],
        Option(
            "csv has domains, tasks and the average.",
            flag="--format",
            noun="--format {value}: one of {known}{hint}",
        ),
    ] = "md",
    flips: Annotated[int, Option("Name N items a task that flipped, each way; 0: none.", minimum=0)] = 5,
    flips_file: Annotated[
        Path | None, Option("Write every item that flipped, with both answers, as csv.")
    ] = None,
    cluster: Annotated[
        str | None,
        Option("Items with one value of this field (a passage) are one draw.", metavar="FIELD"),
    ] = None,
    mid_p: Annotated[bool, Option("McNemar's mid-p: closer to its level than the exact p.")] = False,
    allow_mixed: AllowMixed = False,
    output: Output = None,
) -> None:
    """Compare two runs item by item: difference, interval, adjusted p, wins and losses, detectable effect."""
    comparison = cme_bench.compare(a, b, allow_mixed=allow_mixed, cluster=cluster, mid_p=mid_p)
    print_or_write(comparison.render(fmt, by=by, flips=flips), output, "The comparison")
    if flips_file is not None:
        from cme_bench.util.files import write_text

        write_text(flips_file, comparison.flips())
        say(f"The items that flipped are in {flips_file}")
