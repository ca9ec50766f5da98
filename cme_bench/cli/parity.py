"""``cme-bench parity``."""

from __future__ import annotations

from typing import Annotated

import typer

from cme_bench.cli import app
from cme_bench.cli.plugins import Plugins, load_plugins
from cme_bench.terminal import say


@app.command(
    epilog="Examples:  cme-bench parity smollm2 --data mini   |   cme-bench parity ./llama --adapter ./team "
    "--engines hf,vllm --tasks cme_ll --data ./data --limit 20 --dtype bfloat16"
)
def parity(
    model: Annotated[str, typer.Argument(help="A model folder, a hub id, or 'smollm2'.")],
    adapter: Annotated[str | None, typer.Option(help="A PEFT adapter folder.")] = None,
    engines: Annotated[str, typer.Option(help="Two engines, the reference first.")] = "hf,vllm",
    tasks: Annotated[str, typer.Option(help="Tasks, domains and suites to ask.")] = "cme_rte_ll,cme_rte",
    data: Annotated[str, typer.Option(help="'hub', 'mini', or a folder of DATASET/SPLIT.jsonl.")] = "mini",
    limit: Annotated[int | None, typer.Option(min=1, help="Only N items of each task.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Few-shot exemplars.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Most |d logprob| a token. Default: float32 1e-4, float16 0.125, bfloat16 1."
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    plugin: Plugins = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Engine setting, as in run.")
    ] = None,
) -> None:
    """Send the same token ids through two engines; exit code 1 if they do not answer alike.

    In float32 every label and text must be the same and no log-likelihood may differ by more than the
    tolerance. In 16-bit types near ties may fall either way: only the log-likelihoods decide. What that does
    to the score of every task and domain, and to the average, is printed too.
    """
    from cme_bench.errors import CmeError, UsageError, did_you_mean
    from cme_bench.runs.options import ENGINES, RunOptions, parse_settings

    pair = tuple(engines.split(","))
    for name in pair:
        if name not in ENGINES:
            raise UsageError(f"--engines: unknown engine {name!r}{did_you_mean(name, ENGINES)}")
    if len(pair) != 2:
        raise UsageError(f"--engines takes two engines, not {len(pair)}: for example hf,vllm")
    load_plugins(plugin)
    options = RunOptions(
        model=model,
        tasks=tasks,
        adapters=(adapter,) if adapter else (),
        data=data,
        limit=limit,
        shots=shots,
        dtype=dtype,
        offline=offline,
        settings=parse_settings(set_ or []),
    )
    from cme_bench.analysis.parity import measure_parity

    found = measure_parity(options, (pair[0], pair[1]), tolerance)
    say(f"{found.engines[0]} against {found.engines[1]}, {found.dtype}")
    if found.choices:
        say(
            f"  |d logprob| a token: max {found.max_difference:.2e}, mean {found.mean_difference:.2e} "
            f"({found.choices} continuations)"
        )
        say(f"  same choice: {found.labels_equal} of {found.labels} questions")
    if found.texts:
        say(f"  same text: {found.texts_equal} of {found.texts} answers")
    if found.first:
        say(f"  first difference: {found.first.task}, item {found.first.id}")
        for name, answer in zip(found.engines, found.first.answers, strict=True):
            say(f"    {name}: {answer!r}")
    say(f"  scores in %, {found.engines[0]} and {found.engines[1]}:")
    for line in found.scores:
        one, other = (100 * score for score in line.scores)
        say(f"    {line.form} {line.kind} {line.name}: {one:.2f} {other:.2f} ({100 * line.gap:+.2f} points)")
    if not found.alike:
        raise CmeError(f"the engines do not answer alike (tolerance {found.tolerance:g} a token)")
    say(f"  alike (tolerance {found.tolerance:g} a token)")
