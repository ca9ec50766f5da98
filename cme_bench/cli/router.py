"""``cme-bench router``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli import app
from cme_bench.cli.plugins import Plugins, load_plugins
from cme_bench.terminal import say

_EPILOG = (
    "Examples:  cme-bench router runs/llama-team -o router   |   cme-bench router ./team --data ./data "
    "--tasks cme_mmlu_ll --by subject --limit 20 -o router"
)


@app.command(epilog=_EPILOG)
def router(
    source: Annotated[
        Path, typer.Argument(help="A run folder (its stored prompts are used), or an adapter folder.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the csv and png files.")],
    model: Annotated[
        str | None, typer.Option(help="Base model; default: the run's, or the one the adapter records.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks and domains; default: those of the run; cme for an adapter."),
    ] = None,
    data: Annotated[
        str, typer.Option(help="For an adapter: 'hub', 'mini', or a folder of DATASET/SPLIT.jsonl.")
    ] = "hub",
    limit: Annotated[
        int, typer.Option(min=1, help="Only N items of each task (or group): the first of a fixed shuffle.")
    ] = 100,
    by: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Group items by a field, e.g. subject (MMLU).")
    ] = None,
    prompt_format: Annotated[
        str, typer.Option("--format", help="For an adapter: auto, chat, plain or teamlora.")
    ] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16 or float16; default: the run's, or auto.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    plugin: Plugins = None,
) -> None:
    """Show how an adapter's experts share the tokens: load, entropy, top-1 share, and M, as csv and png."""
    from cme_bench.analysis.router import VALUES, interaction_frame, load_frame, mean_by
    from cme_bench.analysis.router_load import measure_router
    from cme_bench.analysis.router_prompts import RouterOptions
    from cme_bench.paths import make_out
    from cme_bench.reports.figures.router import write_router_figures
    from cme_bench.reports.router_tables import write_router_tables
    from cme_bench.runs.display import show_progress

    load_plugins(plugin)
    options = RouterOptions(
        source=source,
        model=model,
        tasks=tasks,
        data=data,
        limit=limit,
        by=by,
        prompt_format=prompt_format,
        dtype=dtype,
        offline=offline,
    )
    make_out(out)
    with show_progress() as listener:
        found = measure_router(options, listener)
    load, interaction = load_frame(found.slices), interaction_frame(found.interaction)
    label = "group" if by else "domain"
    means = mean_by(load, [label, "layer", "block", "module"])
    write_router_tables(load, means, interaction, label, out)
    write_router_figures(load, interaction, found.title, out)
    say(found.title)
    say(mean_by(load, [label])[[label, "expert", *VALUES]].to_string(index=False, float_format="%.4f"))
    say(f"Tables and figures are in {out}")
