"""``cme-bench tasks check`` and ``cme-bench tasks lock``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from cme_bench.cli.tasks import AllowCode, Offline, load_reader, tasks_app
from cme_bench.terminal import say

if TYPE_CHECKING:
    from cme_bench.tasks.check import Checked


@tasks_app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A task file, or a folder of them.")],
    data: Annotated[
        str, typer.Option(help="Where rows are that do not lie beside the task file: hub, mini or a folder.")
    ] = "hub",
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Also count this model's tokens (only its tokenizer is loaded)."),
    ] = None,
    prompt_format: Annotated[str, typer.Option("--format", help="As for `run`.")] = "auto",
    bos: Annotated[str, typer.Option(help="As for `run`.")] = "auto",
    limit: Annotated[Optional[int], typer.Option(min=1, help="Look at N rows of each task.")] = None,  # noqa: UP045
    allow_code: AllowCode = False,
    offline: Offline = False,
) -> None:
    """Check task files and their rows; every problem is one line with its file and line.

    Exit code 2 if there are errors; warnings alone are 0.
    """
    from cme_bench.errors import UsageError
    from cme_bench.tasks.check import check_path
    from cme_bench.tasks.open_source import open_source
    from cme_bench.tasks.suite import load_suite

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


@tasks_app.command()
def lock(
    check_only: Annotated[
        bool, typer.Option("--check", help="Only compare: exit code 1 if a task is not as locked.")
    ] = False,
) -> None:
    """Record what the built-in tasks say; a changed one must have raised its metadata.version."""
    from datetime import UTC, datetime

    from cme_bench.tasks.lock import changes, lock_file, read_lock, renewed, write_lock
    from cme_bench.tasks.suite import load_suite

    file = lock_file()
    specs, locked = list(load_suite().tasks.values()), read_lock(file)
    found = changes(specs, locked)
    for change in found:
        say(change)
    if check_only:
        say(f"{len(found)} of {len(specs)} tasks differ from {file}")
        raise typer.Exit(bool(found))
    write_lock(file, renewed(specs, locked, today=datetime.now(UTC).date().isoformat()))
    say(f"{len(specs)} tasks are locked in {file}")


def print_checked(checked: list[Checked]) -> bool:
    """Print what was found; whether there are no errors."""
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
