"""``cme-bench efficiency``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cme_bench.cli import app
from cme_bench.cli.help import ADAPTERS, command
from cme_bench.cli.plugins import Plugins
from cme_bench.cli.shared import tell
from cme_bench.experiments.efficiency.options import EfficiencyOptions
from cme_bench.util.options import Option
from cme_bench.util.terminal import say

_EXAMPLES = {
    "measure step time, memory, latency and throughput of adapters": (
        "cme-bench efficiency llama-2-7b -o speed"
    ),
    "measure some methods and parts only": (
        "cme-bench efficiency smollm2 --methods lora128,moelora32,teamlora32 --parts train,hf "
        "--seq 256 -o speed"
    ),
}


@command(app, _EXAMPLES, panel=ADAPTERS)
def efficiency(
    options: EfficiencyOptions,
    out: Annotated[Path, Option("Folder for json, csv and figures.", short="-o")],
    plugin: Plugins = (),
) -> None:
    """Measure what adapters cost: training step time and memory, inference latency and throughput.

    Weights are random and shapes are the model's. Every method is measured in each round on the same base;
    numbers are medians over rounds, warm-up left out, and say whether a baseline is fused.
    """
    from cme_bench.experiments.efficiency.measure import measure
    from cme_bench.experiments.efficiency.shapes import base_config
    from cme_bench.reports.efficiency_table import efficiency_frame, efficiency_markdown
    from cme_bench.reports.figures.inputs import FigureInputs
    from cme_bench.reports.figures.write import write_figures
    from cme_bench.runs.display import show_progress
    from cme_bench.util.csv_text import frame_csv
    from cme_bench.util.files import write_json, write_text
    from cme_bench.util.paths import make_out

    base_config(options, tell)  # what is wrong with the model shows before anything is measured
    make_out(out)
    results = []
    with show_progress() as listener:
        for part in options.parts:
            measured = measure(replace(options, parts=(part,)), listener.note)
            file = out / f"{measured['bench']}.json"
            write_json(file, measured)
            results.append(measured | {"file": file.name})
    write_text(out / "efficiency.csv", frame_csv(efficiency_frame(results)))
    say(efficiency_markdown(results))
    figures = ("figure1_tradeoff", "figure4a_latency")
    for line in write_figures(FigureInputs(benchmarks=results), out, names=figures):
        say(line)
    say(f"Tables and figures are in {out}")
