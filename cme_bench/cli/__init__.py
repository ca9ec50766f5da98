"""The command line. Each command imports its work when it runs, so that --help is instant."""

from __future__ import annotations

import os
import sys

import typer

from cme_bench.errors import CmeError

app = typer.Typer(
    name="cme-bench",
    help="Evaluate multi-task adapters (LoRA ... TeamLoRA) on CME: 22 datasets in 11 domains.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich's help takes 0.2 s to import
)


def main() -> None:
    """Entry point: errors a user can act on become one line on stderr and their exit code."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # one live display, ours
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        app()
    except CmeError as err:
        print(f"cme-bench: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
    except KeyboardInterrupt:
        print("cme-bench: interrupted", file=sys.stderr)
        sys.exit(3)


from cme_bench.cli import (  # noqa: E402 - commands register on `app`
    adapters,
    card,
    compare,
    contamination,
    doctor,
    efficiency,
    fetch,
    figures,
    parity,
    project,
    report,
    reproduce,
    rescore,
    router,
    run,
    table,
    tasks,
    tasks_check,
    tasks_new,
    train,
)

app.add_typer(adapters.app, name="adapters")

__all__ = [
    "adapters",
    "app",
    "card",
    "compare",
    "contamination",
    "doctor",
    "efficiency",
    "fetch",
    "figures",
    "main",
    "parity",
    "project",
    "report",
    "reproduce",
    "rescore",
    "router",
    "run",
    "table",
    "tasks",
    "tasks_check",
    "tasks_new",
    "train",
]
