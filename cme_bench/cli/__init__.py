"""The command line. Each command imports its work when it runs, so that --help is instant."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import typer

from cme_bench.errors import CmeError, InterruptedRun
from cme_bench.terminal import say

_CLICK_INTERRUPTED = 130
"""The exit code that the command line's library makes of a KeyboardInterrupt."""

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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, until a run takes both over
    try:
        app()
    except CmeError as err:
        say(f"cme-bench: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
    except MemoryError:
        say(
            "cme-bench: out of memory; what was stored is intact: free some, or take a smaller model, dtype "
            "or --set tokens_per_batch, then run the same command again",
            file=sys.stderr,
        )
        sys.exit(CmeError.exit_code)
    except SystemExit as stop:
        if stop.code != _CLICK_INTERRUPTED:
            raise
        _interrupted()
    except KeyboardInterrupt:
        _interrupted()


def _interrupted() -> NoReturn:
    say("cme-bench: interrupted", file=sys.stderr)
    sys.exit(InterruptedRun.exit_code)


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
