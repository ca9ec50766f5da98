"""``cme-bench run``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli import app
from cme_bench.cli.plugins import Plugins, load_plugins

_EPILOG = (
    "Examples:  cme-bench run smollm2 --data mini   |   cme-bench run ./llama --tasks nli,cme_rte_ll "
    "--data ./data --limit 200   |   the same command again resumes.   "
    "Exit codes: 0 done, 2 bad input, 3 interrupted and resumable, 1 anything else."
)


@app.command(epilog=_EPILOG)
def run(
    model: Annotated[
        str, typer.Argument(help="A model folder, a hub id, or 'smollm2' (the embedded default).")
    ],
    tasks: Annotated[
        str, typer.Option(help="Comma-separated tasks, domains and suites: cme, cme_ll, nli, cme_rte_ll, ...")
    ] = "cme",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="A PEFT adapter folder. Give it several times: one run folder each, base loaded once."
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="What computes: hf (transformers), vllm, or ray (several of either). auto: hf."),
    ] = "auto",
    worker: Annotated[str | None, typer.Option(help="ray: what a worker computes with, hf or vllm.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="ray: how many workers; default: as there are GPUs, or nodes without GPUs."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="ray: HOST:PORT of a cluster's head, or 'auto'; default: this machine alone."),
    ] = None,
    data: Annotated[
        str,
        typer.Option(help="'hub', 'mini' (our own smoke-test items), or a folder of DATASET/SPLIT.jsonl."),
    ] = "hub",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only N items of each task: the first of a fixed shuffle.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Few-shot exemplars; default: the task's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of few-shot sampling.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    prompt_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="auto, chat, plain or teamlora. auto: the adapter's, else chat where the "
            "model has a template and the task generates, else plain.",
        ),
    ] = "auto",
    system: Annotated[
        str | None, typer.Option(help="System prompt, where the format is chat (exemplars are turns there).")
    ] = None,
    bos: Annotated[
        str,
        typer.Option(
            help="auto, always or never: whether prompts begin with BOS. auto: as the adapter was trained, "
            "else as the tokenizer does; where it adds none, one for families trained with it."
        ),
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/MODEL-HASH.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    include: Annotated[list[Path] | None, typer.Option(help="Folder of your own task files.")] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run !function code of --include files.")
    ] = False,
    max_truncated: Annotated[
        int | None, typer.Option(min=0, help="Fail if more prompts than this must be cut to fit.")
    ] = None,
    plugin: Plugins = None,
    engine_stats: Annotated[
        bool, typer.Option("--engine-stats", help="Print what the engine computed, and how fast.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Engine setting, e.g. tokens_per_batch=2048."),
    ] = None,
) -> None:
    """Evaluate a checkpoint: per-item records, results.json and summary.csv in a run folder.

    Killed at any moment, the same command goes on where it stopped.
    """
    from cme_bench.runs.display import show_progress
    from cme_bench.runs.options import RunOptions, check_model, parse_settings

    load_plugins(plugin)
    options = RunOptions(
        model=model,
        tasks=tasks,
        adapters=tuple(adapter or ()),
        engine=engine,
        worker=worker or "hf",
        workers=workers,
        address=address,
        data=data,
        limit=limit,
        shots=shots,
        seed=seed,
        dtype=dtype,
        out=out,
        offline=offline,
        prompt_format=prompt_format,
        system=system,
        bos=bos,
        include=tuple(include or ()),
        allow_code=allow_code,
        max_truncated=max_truncated,
        settings=parse_settings(set_ or []),
        command=tuple(sys.argv),
    )
    check_model(options)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported, below
    from cme_bench.runs.runner import run as evaluate

    with show_progress() as listener:
        listener.note(f"cme-bench run {model}: preparing")
        folders = evaluate(options, listener)
    for folder in folders:
        _print_summary(folder, engine_stats)


def _print_summary(folder: Path, engine_stats: bool) -> None:
    from rich.console import Console

    from cme_bench.reports.engine_stats import stats_lines
    from cme_bench.reports.run_summary import summary_table, warnings
    from cme_bench.terminal import markup

    console = Console()
    console.print(summary_table(folder))
    for line in stats_lines(folder) if engine_stats else ():
        console.print(markup(line), soft_wrap=True, highlight=False)
    for warning in warnings(folder):
        console.print(f"[yellow]warning:[/yellow] {markup(warning)}", soft_wrap=True)
    console.print(f"Results are in {markup(str(folder))}", soft_wrap=True, highlight=False)
