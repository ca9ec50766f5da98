"""Defaults of every command from the project file, before any command runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cme_bench.cli import app
from cme_bench.util.project import check_defaults, find_project
from cme_bench.util.terminal import say
from cme_bench.version import __version__


def _show_version(asked: bool) -> None:
    if asked:
        say(f"cme-bench {__version__}")
        raise typer.Exit


@app.callback()
def project(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Evaluate multi-task adapters (LoRA ... TeamLoRA) on CME: 22 datasets in 11 domains."""
    file = find_project(Path.cwd())
    if file is None:
        return
    options = list(_options(context.command))
    check_defaults(file, (name for _, name, _ in options))
    values = dict(file.defaults)
    if file.include:
        values.setdefault("include", [str(path) for path in file.include])
    if file.plugins:
        values["plugin"] = list(file.plugins)
    context.default_map = {}
    for path, name, parameter in options:
        if name not in values:
            continue
        level: Any = context.default_map
        for command in path:
            level = level.setdefault(command, {})
        level[parameter.name] = _as_typed(values[name], several=parameter.multiple)


def _as_typed(value: Any, *, several: bool) -> Any:
    """Return a value of the file as the option takes it: a list, or one text with commas."""
    if several:
        return value if isinstance(value, list) else [value]
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _options(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Yield (names of the command, an option's long name, the option) of every command below ``command``."""
    for name, below in getattr(command, "commands", {}).items():
        yield from _options(below, (*path, name))
    for parameter in command.params if path else ():
        if parameter.param_type_name == "option":
            for flag in parameter.opts:
                if flag.startswith("--"):
                    yield path, flag.removeprefix("--"), parameter
