"""``cme-bench tasks check`` and ``cme-bench tasks lock``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cme_bench.cli.help import command
from cme_bench.cli.tasks import Bos, Format, load_reader, tasks_app
from cme_bench.util.options import AllowCode, Offline, Option
from cme_bench.util.terminal import say

if TYPE_CHECKING:
    from cme_bench.authoring.check import Checked


@command(
    tasks_app,
    {"check task files and rows, each problem with file and line": "cme-bench tasks check ./mine"},
)
def check(
    path: Annotated[Path, Option("A task file, or a folder of them.", argument=True)],
    data: Annotated[
        str, Option("Where rows are that do not lie beside the task file: hub, mini or a folder.")
    ] = "hub",
    model: Annotated[
        str | None, Option("Also count this model's tokens (only its tokenizer is loaded).")
    ] = None,
    prompt_format: Format = "auto",
    bos: Bos = "auto",
    limit: Annotated[int | None, Option("Look at N rows of each task.", minimum=1)] = None,
    allow_code: AllowCode = False,
    offline: Offline = False,
) -> None:
    """Check task files and their rows; every problem is one line with its file and line.

    Exit code 2 if there are errors; warnings alone are 0.
    """
    from cme_bench.authoring.check import check_path
    from cme_bench.tasks.open_source import open_source
    from cme_bench.tasks.suite import load_suite
    from cme_bench.util.errors import UsageError

    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    reader = None
    if model is not None:
        reader = load_reader(model, offline, bos=bos, prompt_format=prompt_format)
    checked = check_path(
        path,
        load_suite(),
        open_source(data, offline=offline),
        allow_code=allow_code,
        reader=reader,
        limit=limit,
    )
    if not print_checked(checked):
        raise typer.Exit(2)


@command(tasks_app, {"see that the built-in tasks are as locked": "cme-bench tasks lock --check"})
def lock(
    check_only: Annotated[
        bool, Option("Only compare: exit code 1 if a task is not as locked.", flag="--check")
    ] = False,
) -> None:
    """Record the content of the built-in tasks; a changed one must have raised its metadata.version."""
    from datetime import UTC, datetime

    from cme_bench.authoring.lock import changes, lock_file, read_lock, renewed, write_lock
    from cme_bench.tasks.suite import load_suite

    file = lock_file()
    specs, locked = list(load_suite().tasks.values()), read_lock(file)
    changed = changes(specs, locked)
    for change in changed:
        say(change)
    if check_only:
        say(f"{len(changed)} of {len(specs)} tasks differ from {file}")
        raise typer.Exit(bool(changed))
    write_lock(file, renewed(specs, locked, today=datetime.now(UTC).date().isoformat()))
    say(f"{len(specs)} tasks are locked in {file}")


def print_checked(checked: list[Checked]) -> bool:
    """Print the findings, and return whether there are no errors."""
    for task in checked:
        for finding in task.findings:
            say(finding)
        if task.name and not task.failed:
            say(f"ok: {task.name}: {', '.join(task.facts)}")
    levels = [finding.level for task in checked for finding in task.findings]
    errors, warnings = levels.count("error"), levels.count("warning")
    named = sum(bool(task.name) for task in checked)
    say(f"{named} task{'' if named == 1 else 's'} checked: {errors} errors, {warnings} warnings")
    return not errors
