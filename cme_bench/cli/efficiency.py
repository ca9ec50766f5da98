"""``cme-bench efficiency``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli import app
from cme_bench.cli.plugins import Plugins, load_plugins
from cme_bench.efficiency.options import PARTS, PRESETS, EfficiencyOptions, method_choices
from cme_bench.terminal import say

_EPILOG = (
    "Examples:  cme-bench efficiency llama-2-7b -o speed   |   cme-bench efficiency smollm2 --methods "
    "lora128,moelora32,teamlora32 --parts train,hf --seq 256 -o speed   |   cme-bench figures speed/*.json"
)


@app.command(epilog=_EPILOG)
def efficiency(
    model: Annotated[
        str, typer.Argument(help=f"A model (its shapes are used) or a preset: {', '.join(PRESETS)}.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for json, csv and figures.")],
    methods: Annotated[
        str,
        typer.Option(help="Comma-separated forms, 'default' or 'all'; `adapters methods` lists them."),
    ] = "default",
    parts: Annotated[
        str, typer.Option(help="train (step time, memory), hf and vllm (inference).")
    ] = ",".join(PARTS),
    rounds: Annotated[int, typer.Option(help="Rounds; every method is measured in each.")] = 5,
    steps: Annotated[int, typer.Option(help="Timed training steps of a method in a round.")] = 3,
    warmup: Annotated[int, typer.Option(min=0, help="Steps before them, not timed.")] = 2,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Sequences of a step; default: fill the card; 2 on a CPU.")
    ] = None,
    seq: Annotated[int, typer.Option(help="Tokens of a training sequence.")] = 1024,
    layers: Annotated[int | None, typer.Option(min=1, help="Decoder layers; default: the model's.")] = None,
    requests: Annotated[int, typer.Option(help="Requests of the full batch.")] = 256,
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 256,
    new: Annotated[int, typer.Option(help="Tokens to generate.")] = 128,
    dtype: Annotated[str | None, typer.Option(help="Of inference: float32, bfloat16 or float16.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    plugin: Plugins = None,
) -> None:
    """Measure what adapters cost: training step time and memory, inference latency and throughput.

    Weights are random and shapes are the model's. Every method is measured in each round on the same base;
    numbers are medians over rounds, warm-up left out, and say whether a baseline is fused.
    """
    load_plugins(plugin)
    options = EfficiencyOptions(
        model=model,
        methods=_methods(methods),
        parts=tuple(_names(parts)),
        rounds=rounds,
        steps=steps,
        warmup=warmup,
        batch=batch,
        seq=seq,
        layers=layers,
        requests=requests,
        prompt=prompt,
        new=new,
        dtype=dtype,
        offline=offline,
    )
    _measure_all(options, out)


def _methods(given: str) -> tuple[str, ...]:
    if given in ("all", "default"):
        return method_choices(default=given == "default")
    return tuple(_names(given))


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def _measure_all(options: EfficiencyOptions, out: Path) -> None:
    from dataclasses import replace

    from cme_bench.efficiency.measure import measure
    from cme_bench.efficiency.shapes import base_config
    from cme_bench.paths import make_out
    from cme_bench.reports.efficiency_table import efficiency_frame, efficiency_markdown
    from cme_bench.reports.figures.inputs import FigureInputs
    from cme_bench.reports.figures.write import write_figures
    from cme_bench.runs.display import show_progress
    from cme_bench.util.csv_text import frame_csv
    from cme_bench.util.files import write_json, write_text

    base_config(options)  # what is wrong with the model shows before anything is measured
    make_out(out)
    results = []
    with show_progress() as listener:
        for part in options.parts:
            found = measure(replace(options, parts=(part,)), listener.note)
            file = out / f"{found['bench']}.json"
            write_json(file, found)
            results.append(found | {"file": file.name})
    write_text(out / "efficiency.csv", frame_csv(efficiency_frame(results)))
    say(efficiency_markdown(results))
    figures = ("figure1_tradeoff", "figure4a_latency")
    for line in write_figures(FigureInputs(benchmarks=results), out, names=figures):
        say(line)
    say(f"Tables and figures are in {out}")
