"""How ``--help`` looks: options under their panels, then examples; commands under what they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from cme_bench.cli.options import with_options

EXIT_CODES = "Exit codes: 0 done, 2 bad input, 3 interrupted and resumable, 1 anything else."
PANELS = EVALUATE, READ, ADAPTERS, TASKS, MACHINE = (
    "Evaluate",
    "Read results",
    "Adapters",
    "Tasks and data",
    "This machine",
)
"""The purposes of commands, in the order in which they are listed."""
_CONTEXT = {"max_content_width": 110}


class Command(TyperCommand):
    """A command whose help groups its options by panel and ends with examples."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the options, and then each panel's options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            heading = "Arguments" if parameter.param_type_name == "argument" else "Options"
            record = parameter.get_help_record(ctx)
            if record is not None:
                panel = getattr(parameter, "rich_help_panel", None) or heading
                sections.setdefault(panel, []).append(record)
        _write_sections(formatter, sections)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, each below what it is for, and the exit codes."""
        with formatter.section("Examples"):
            for purpose, line in examples_of(self).items():
                formatter.write_text(f"{purpose}:")
                formatter.write(f"{'':{formatter.current_indent + 2}}{line}\n")
        formatter.write_paragraph()
        formatter.write_text(EXIT_CODES)


class Group(TyperGroup):
    """A group that lists its commands under what they are for."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each panel's commands, with the first sentence of their help."""
        sections: dict[str, list[tuple[str, str]]] = {panel: [] for panel in PANELS}
        limit = formatter.width - 6 - max(map(len, self.commands))
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            sections.setdefault(panel, []).append((name, command.get_short_help_str(limit)))
        _write_sections(formatter, sections)


def _write_sections(formatter: Any, sections: Mapping[str, list[tuple[str, str]]]) -> None:
    for heading, rows in sections.items():
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows)


def examples_of(command: Any) -> dict[str, str]:
    """Return a command's examples: what one wants to do, and the command line that does it."""
    return dict(getattr(command.callback, "examples", {}))


def group(help: str | None = None, **more: Any) -> typer.Typer:
    """Return an empty group of commands, which shows its help if it is called alone."""
    settings: dict[str, Any] = {"no_args_is_help": True, "context_settings": _CONTEXT, **more}
    # no markup: Rich's help takes 0.2 s to import
    return typer.Typer(cls=Group, help=help, rich_markup_mode=None, **settings)


def command(
    app: typer.Typer, examples: Mapping[str, str], *, panel: str | None = None, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that makes a function a command of ``app``, see :mod:`cme_bench.cli.options`.

    ``examples``: what one wants to do, as an infinitive, and the command line that does it. They stand in the
    command's help and in the table of docs/cli.md.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        made = with_options(function)
        made.examples = dict(examples)  # type: ignore[attr-defined]
        app.command(name, cls=Command, rich_help_panel=panel, context_settings=_CONTEXT)(made)
        return function

    return register
