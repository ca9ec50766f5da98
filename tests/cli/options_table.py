"""The options of every command as plain values, read from what Typer hands to its parser."""

from __future__ import annotations

import json
from typing import Any

import typer
from typer.main import get_command


def options_table(app: typer.Typer) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the parameters of each command by their longest name; what is false is left out."""
    table = {}
    below: list[tuple[str, Any]] = [("", get_command(app))]
    while below:
        path, command = below.pop()
        commands = getattr(command, "commands", {})
        below += [(f"{path} {name}".strip(), inner) for name, inner in commands.items()]
        if path and not commands:
            table[path] = {max(p.opts, key=len): _row(p) for p in command.params}
    return table


def _row(parameter: Any) -> dict[str, Any]:
    row = {
        "kind": parameter.param_type_name,
        "names": sorted([*parameter.opts, *parameter.secondary_opts]),
        "required": parameter.required,
        "several": bool(getattr(parameter, "multiple", False)) or parameter.nargs == -1,
        "flag": bool(getattr(parameter, "is_flag", False)),
        "hidden": bool(getattr(parameter, "hidden", False)),
        "type": "text" if parameter.type.name in {"str", "choice", "path"} else parameter.type.name,
    }
    return {k: v for k, v in row.items() if v is not False} | {"default": plain(parameter.default)}


def plain(value: Any) -> Any:
    """Return ``value`` as JSON has it."""
    return json.loads(json.dumps(value, default=str))
