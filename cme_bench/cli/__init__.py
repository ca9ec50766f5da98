"""The command line. Each command imports its work when it runs, so that --help is instant."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import NoReturn

from cme_bench.cli.help import group
from cme_bench.util.collection import uncollected_at_exit
from cme_bench.util.errors import CmeError, InterruptedRun
from cme_bench.util.terminal import say

_CLICK_INTERRUPTED = 130
"""The exit code that the command line's library makes of a KeyboardInterrupt."""

app = group(
    name="cme-bench",
    help="Evaluate multi-task adapters (LoRA ... TeamLoRA) on CME: 22 datasets in 11 domains.",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run a command; an error that a user can act on becomes one line on stderr and its exit code."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # one live display, ours
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    uncollected_at_exit()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, until a run takes both over
    try:
        app()
    except CmeError as error:
        say(f"cme-bench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
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


_COMMANDS = (
    "run",
    "lm_eval",
    "parity",
    "rescore",
    "contamination",
    "runs",
    "view",
    "table",
    "compare",
    "report",
    "figures",
    "card",
    "train",
    "sweep",
    "adapters",
    "router",
    "efficiency",
    "reproduce",
    "tasks",
    "tasks_check",
    "tasks_new",
    "fetch",
    "doctor",
    "project",
)
for _command in _COMMANDS:
    importlib.import_module(f"{__name__}.{_command}")  # it registers itself on `app`
