"""Write docs/cli.md from the command line: ``python -m cme_bench.cli.reference docs/cli.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from cme_bench.cli import app
from cme_bench.cli.help import EXIT_CODES, PANELS, examples_of

_HEAD = f"""# Commands

This page is made from the command line by `make docs`; a test keeps it current. `cme-bench COMMAND --help`
says the same. {EXIT_CODES}

`cme-bench.toml` sets defaults of all commands; an option that is typed wins.
"""
_OWN = ("--help",)


def commands() -> Iterator[tuple[str, str, Any]]:
    """Yield every command: its heading in ``--help``, its name with the group's, and the command itself."""
    for name, command in _below(get_command(app)):
        heading = command.rich_help_panel
        for inner_name, inner in _below(command):
            yield heading, f"{name} {inner_name}", inner
        if not _below(command):
            yield heading, name, command


def _below(command: Any) -> list[tuple[str, Any]]:
    return list(getattr(command, "commands", {}).items())


def page() -> str:
    """Return the page: what one wants to do and the command for it, then every command's options."""
    every = sorted(commands(), key=lambda each: PANELS.index(each[0]))
    lines = [_HEAD, "| you want to | command |", "|---|---|"]
    for _, name, command in every:
        for purpose, line in examples_of(command).items():
            lines.append(f"| [{_cell(purpose)}](#{_anchor(name)}) | `{_cell(line)}` |")
    for heading in PANELS:
        lines += ["", f"## {heading}"]
        for panel, name, command in every:
            if panel == heading:
                lines += ["", *_section(name, command)]
    return "\n".join(lines) + "\n"


def _section(name: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([name, *(_argument(p) for p in arguments), "[OPTIONS]"])
    yield f"### {name}"
    yield from ("", f"`cme-bench {usage}`", "")
    yield from " ".join(command.help.split("\n")).replace("  ", "\n\n").split("\n")
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    if shown:
        yield from ("", "| option | default | meaning |", "|---|---|---|")
    panels = dict.fromkeys(_panel(p) for p in shown)
    for panel in sorted(panels, key=bool):
        if panel:
            yield f"| **{panel}** | | |"
        for parameter in shown:
            if _panel(parameter) == panel:
                yield f"| {_names(parameter)} | {_default(parameter)} | {_cell(parameter.help or '')} |"


def _panel(parameter: Any) -> str:
    return getattr(parameter, "rich_help_panel", None) or ""


def _argument(parameter: Any) -> str:
    text = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    return text if parameter.required else f"[{text}]"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    names = [*sorted(parameter.opts, key=len, reverse=True), *parameter.secondary_opts]
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.type.name.split()[0].upper()}"
    several = ", repeatable" if parameter.multiple else ""
    return ", ".join(f"`{_cell(name + value)}`" for name in names) + several


def _default(parameter: Any) -> str:
    if parameter.required:
        return "*must be given*"
    default = parameter.default() if callable(parameter.default) else parameter.default
    if isinstance(default, bool):
        return ("on" if default else "") if parameter.secondary_opts else ""
    return "" if default in (None, "", ()) else f"`{_cell(str(default))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(heading: str) -> str:
    return heading.replace(" ", "-")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
