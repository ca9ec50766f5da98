"""``cme-bench run``."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cme_bench.cli import app
from cme_bench.cli.given import ConfigFile, FromRun
from cme_bench.cli.help import EVALUATE, command
from cme_bench.cli.plugins import Plugins
from cme_bench.runs.options import RunOptions, check_ask, check_model
from cme_bench.util.options import Option
from cme_bench.util.phases import phase
from cme_bench.util.shared_objects import load_early

_EXAMPLES = {
    "evaluate the embedded SmolLM2 on our own smoke-test items": "cme-bench run smollm2 --data mini",
    "evaluate a checkpoint; the same command again resumes": (
        "cme-bench run ./llama --tasks nli,cme_rte_ll --data ./data --limit 200"
    ),
    "evaluate adapters on one loaded base": "cme-bench run ./llama --adapter ./team --adapter ./lora",
    "evaluate on vLLM": "cme-bench run ./llama --adapter ./team --engine vllm",
    "evaluate on many GPUs or nodes, with equal numbers": (
        "cme-bench run ./llama --engine ray --worker vllm --address HOST:PORT"
    ),
    "keep the options in a file, and type what differs": "cme-bench run --config run.toml --limit 20",
    "repeat an earlier run's settings": "cme-bench run --from runs/llama --adapter ./new",
    "see first what would be asked, and how long it may take": (
        "cme-bench run ./llama --tasks cme --limit 200 --dry-run"
    ),
    "run any task of lm-eval under our rules": "cme-bench run ./llama --tasks lm_eval:hellaswag",
}


@command(app, _EXAMPLES, panel=EVALUATE)
def run(
    options: RunOptions,
    config: ConfigFile = None,
    again: FromRun = None,
    plugin: Plugins = (),
    engine_stats: Annotated[
        bool, Option("Print what the engine computed, and how fast; and where the command's seconds went.")
    ] = False,
    dry_run: Annotated[
        bool,
        Option(
            "Ask and write nothing: say what would be asked, how many tokens that is, and about how long it "
            "takes here."
        ),
    ] = False,
) -> None:
    """Evaluate a checkpoint: per-item records, results.json and summary.csv in a run folder.

    Killed at any moment, the same command goes on where it stopped.
    """
    check_model(options)
    check_ask(options)
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported, below
    if dry_run:
        _print_dry_run(options)
        return
    with phase("libraries"):
        from cme_bench.runs.display import show_progress
        from cme_bench.runs.runner import run as evaluate

        if options.engine in ("auto", "hf", "vllm"):
            load_early()
    with show_progress() as listener:
        listener.note(f"cme-bench run {options.model}: preparing")
        folders = evaluate(replace(options, command=tuple(sys.argv)), listener)
    with phase("table"):
        for folder in folders:
            _print_summary(folder, engine_stats)
    if engine_stats:
        from cme_bench.reports.engine_stats import phases_line
        from cme_bench.util.terminal import say

        say(phases_line(*phase.seconds()))


def _print_dry_run(options: RunOptions) -> None:
    from cme_bench.cli.shared import tell
    from cme_bench.runs.dry_run import dry_run
    from cme_bench.util.terminal import say

    say("\n\n".join(map(str, dry_run(options, tell))))


def _print_summary(folder: Path, engine_stats: bool) -> None:
    from rich.console import Console

    from cme_bench.reports.engine_stats import stats_lines
    from cme_bench.reports.run_summary import summary_table, warnings
    from cme_bench.util.terminal import markup

    console = Console()
    console.print(summary_table(folder))
    for line in stats_lines(folder) if engine_stats else ():
        console.print(markup(line), soft_wrap=True, highlight=False)
    for warning in warnings(folder):
        console.print(f"[yellow]warning:[/yellow] {markup(warning)}", soft_wrap=True)
    console.print(f"Results are in {markup(str(folder))}", soft_wrap=True, highlight=False)
