"""``cme-bench rescore``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli import app
from cme_bench.terminal import say


@app.command(epilog="Example:  cme-bench rescore runs/llama-team")
def rescore(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[
        str | None, typer.Option(help="Where the rows are now, if not where the run read them.")
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run !function code of the task files that the run included.")
    ] = False,
) -> None:
    """Score a run's stored responses again with today's extraction and metrics, without a model."""
    from cme_bench.runs.rescore import rescore as rescore_run

    found = rescore_run(run, data=data, allow_code=allow_code)
    for task in found:
        say(
            f"{task.task}: {task.metric} "
            f"{task.measure.shown(task.before)} -> {task.measure.shown(task.after)}, "
            f"{task.changed} of {task.items} items changed"
            + (" (prompts not compared: the model's tokenizer is gone)" if task.unchecked else "")
        )
    say(f"Results are in {run}")
