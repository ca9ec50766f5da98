"""``cme-bench router``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cme_bench.cli import app
from cme_bench.cli.help import ADAPTERS, command
from cme_bench.cli.plugins import Plugins
from cme_bench.experiments.options import RouterOptions
from cme_bench.util.options import Option
from cme_bench.util.terminal import say

_EXAMPLES = {
    "see which expert of a routed adapter does what, on the prompts of a run": (
        "cme-bench router runs/llama-team -o router"
    ),
    "the same by a field of the items": (
        "cme-bench router ./team --data ./data --tasks cme_mmlu_ll --by subject --limit 20 -o router"
    ),
}


@command(app, _EXAMPLES, panel=ADAPTERS)
def router(
    options: RouterOptions,
    out: Annotated[Path, Option("Folder for the csv and png files.", short="-o")],
    plugin: Plugins = (),
) -> None:
    """Show how an adapter's experts share the tokens: load, entropy, top-1 share, and M, as csv and png."""
    from cme_bench.experiments.router import VALUES, interaction_frame, load_frame, mean_by
    from cme_bench.experiments.router_load import measure_router
    from cme_bench.reports.figures.router import write_router_figures
    from cme_bench.reports.router_tables import write_router_tables
    from cme_bench.runs.display import show_progress
    from cme_bench.util.paths import make_out

    make_out(out)
    with show_progress() as listener:
        measured = measure_router(options, listener)
    load, interaction = load_frame(measured.slices), interaction_frame(measured.interaction)
    label = "group" if options.by else "domain"
    means = mean_by(load, [label, "layer", "block", "module"])
    write_router_tables(load, means, interaction, label, out)
    write_router_figures(load, interaction, measured.title, out)
    say(measured.title)
    say(mean_by(load, [label])[[label, "expert", *VALUES]].to_string(index=False, float_format="%.4f"))
    say(f"Tables and figures are in {out}")
