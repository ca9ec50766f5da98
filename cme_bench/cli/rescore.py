"""``cme-bench rescore``."""

from __future__ import annotations

from typing import Annotated

from cme_bench.cli import app
from cme_bench.cli.help import EVALUATE, command
from cme_bench.cli.shared import RunFolder
from cme_bench.util.options import Option
from cme_bench.util.terminal import say

_EXAMPLES = {"score stored answers again, without a model": "cme-bench rescore runs/llama-team"}


@command(app, _EXAMPLES, panel=EVALUATE)
def rescore(
    run: RunFolder,
    data: Annotated[str | None, Option("Where the rows are now, if not where the run read them.")] = None,
    allow_code: Annotated[
        bool, Option("Run !function code of the task files that the run included.")
    ] = False,
) -> None:
    """Score a run's stored responses again with today's extraction and metrics, without a model."""
    from cme_bench.runs.rescore import rescore as rescore_run

    for task in rescore_run(run, data=data, allow_code=allow_code):
        say(
            f"{task.task}: {task.metric} "
            f"{task.measure.shown(task.before)} -> {task.measure.shown(task.after)}, "
            f"{task.changed} of {task.items} items changed"
            + (" (prompts not compared: the model's tokenizer is gone)" if task.unchecked else "")
        )
    say(f"Results are in {run}")
