"""``cme-bench runs``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

from cme_bench.cli import app
from cme_bench.cli.help import READ, command
from cme_bench.util.options import Option
from cme_bench.util.terminal import say

_EXAMPLES = {
    "see which runs there are, and what they scored": "cme-bench runs",
    "see what can be gone on with, the last one first": "cme-bench runs --state stopped --sort age",
    "take the best runs of one adapter to another program": (
        "cme-bench runs results --adapter team --sort score --json"
    ),
}
RunsFolder = Annotated[Path, Option("A folder with run folders in it.", argument=True)]


@command(app, _EXAMPLES, panel=READ)
def runs(
    folder: RunsFolder = Path("runs"),
    state: Annotated[
        tuple[Literal["running", "preparing", "finished", "stopped", "incomplete", "broken"], ...],
        Option("Only runs in one of these states.", separated=True),
    ] = (),
    model: Annotated[str, Option("Only runs whose model's name has this in it.")] = "",
    adapter: Annotated[
        str | None, Option("Only runs whose adapter's name has this in it; 'base': without one.")
    ] = None,
    task: Annotated[str, Option("Only runs with a task whose name has this in it.")] = "",
    sort: Annotated[
        Literal["name", "model", "adapter", "tasks", "n", "score", "state", "age"],
        Option("The order; numbers begin with the highest, ages with the youngest."),
    ] = "name",
    reverse: Annotated[bool, Option("The other way round.")] = False,
    json: Annotated[bool, Option("Print a JSON list instead, an object for each run.")] = False,
) -> None:
    """List the runs below a folder: model, adapter, tasks, score, state, and whether one can be resumed.

    Reads each run's records of itself and no samples. A broken run is a row that says what is wrong.
    """
    from cme_bench.reports.listing import as_json, overview
    from cme_bench.reports.listing_text import chosen, listing_table, ordered
    from cme_bench.runs.find import find_runs

    now = time.time()
    found = find_runs(folder)
    every = [overview(run, folder, now=now) for run in found.runs]
    picked = chosen(every, states=state, model=model, adapter=adapter, task=task)
    picked = ordered(picked, sort, reverse=reverse)
    if json:
        say(as_json(picked, now=now), end="")
    elif picked:
        _print(listing_table(picked, now=now))
    else:
        say(f"{folder}: no run{' that passes the filters' if every else ''}")
    for run in picked if not json else ():
        if run.fault:
            say(f"{run.name}: {run.fault}")
    for note in found.notes:
        say(f"note: {note}", file=sys.stderr)
    if found.others and not json:
        more = f" and {len(found.others) - 5} more" if len(found.others) > 5 else ""
        say(f"note: no run in {', '.join(found.others[:5])}{more}", file=sys.stderr)


def _print(table: object) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a file or a pipe has room
        console = Console(width=200)
    console.print(table)
