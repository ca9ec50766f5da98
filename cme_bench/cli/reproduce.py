"""``cme-bench reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli import app
from cme_bench.cli.plugins import Plugins, load_plugins
from cme_bench.terminal import say

_EPILOG = (
    "Examples:  cme-bench reproduce experiments/smollm2.yaml --scale cpu --data ./data --out results/runs/cpu"
    "   |   --plan prints what it costs   |   --minutes 10 --state parts stops in time and carries what is "
    "done to another machine.   Exit codes: 0 done, 2 bad input, 3 stopped and resumable, 1 anything else."
)


@app.command(epilog=_EPILOG)
def reproduce(
    recipe: Annotated[Path, typer.Argument(help="A recipe file, as experiments/smollm2.yaml.")],
    scale: Annotated[str, typer.Option(help="One of the recipe's scales.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of everything that is computed.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="Instead of the recipe's.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Instead of the recipe's: 'hub', 'mini' or a folder.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it costs, from a step measured here.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0.5, help="Stop cleanly before so many minutes are over.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of the main rows.")] = None,
    side_seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of all other rows.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that share the machine.")] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder of parts of at most 16 MiB: read at the start, written at the end."),
    ] = None,
    publish: Annotated[
        Path | None, typer.Option(help="Copy results here: no weights, no texts of items.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    plugin: Plugins = None,
    helper: Annotated[bool, typer.Option("--helper", hidden=True)] = False,
) -> None:
    """Rerun the paper's experiments from a recipe: trainings, evaluations, tables, figures and claims.

    Stopped or killed, the same command goes on and computes nothing twice.
    """
    import os
    import sys

    from cme_bench.reproduce.recipe import read_recipe

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported, below
    load_plugins(plugin)
    chosen = read_recipe(
        recipe, scale, model=model, data=data, seeds=seeds, side_seeds=side_seeds, workers=workers
    )

    def note(message: str) -> None:
        say(message, file=sys.stderr)

    from cme_bench.reproduce.reproduce import Call
    from cme_bench.reproduce.reproduce import plan as plan_costs
    from cme_bench.reproduce.reproduce import reproduce as run_recipe

    if plan:
        say(plan_costs(chosen, out, offline=offline, note=note), end="")
        return
    again = ["reproduce", str(recipe), "--scale", scale, "--out", str(out), "--helper"]
    for option, value in (
        ("--model", model),
        ("--data", data),
        ("--seeds", seeds),
        ("--side-seeds", side_seeds),
        ("--workers", workers),
    ):
        again += [] if value is None else [option, str(value)]
    call = Call(
        out=out,
        offline=offline,
        minutes=minutes,
        state=state,
        published=publish,
        helper_command=(*again, *(["--offline"] if offline else [])),
        is_helper=helper,
    )
    run_recipe(chosen, call, note)
    if not helper:
        say(f"Results are in {publish or out}")
