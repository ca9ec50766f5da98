"""``cme-bench lm-eval``: lm-eval's own command line, which knows the model ``cme-hf`` then.

lm-eval 0.4.13 has no entry point for models of other packages: a model is known once its module is imported.
"""

from __future__ import annotations

import os

import typer

from cme_bench.cli import app
from cme_bench.cli.help import EVALUATE, Command

_EXAMPLES = {
    "run lm-eval with our engine below it": (
        "cme-bench lm-eval --model cme-hf --model_args pretrained=./llama --tasks hellaswag"
    ),
    "see lm-eval's own help": "cme-bench lm-eval --help",
}


def lm_eval(context: typer.Context) -> None:
    """Run lm-eval's command line, with the model cme-hf: everything is passed on as it is."""
    from cme_bench.harness.lm_eval_command import run_lm_eval
    from cme_bench.util.errors import UsageError, first_line

    try:
        run_lm_eval(context.args)
    except ValueError as error:  # what lm-eval raises for a command that it cannot run
        if os.environ.get("LMEVAL_LOG_LEVEL", "").upper() == "DEBUG":
            raise
        raise UsageError(f"lm-eval: {first_line(error)}") from error


lm_eval.examples = _EXAMPLES  # type: ignore[attr-defined]
app.command(
    "lm-eval",
    cls=Command,
    rich_help_panel=EVALUATE,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "max_content_width": 110},
)(lm_eval)
