"""The option of every command that loads adapters: whose methods they may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py|MODULE",
        help="Adapter methods of yours: its code is run. Give it several times for several.",
    ),
]


def load_plugins(plugin: Sequence[str] | None) -> None:
    """Run the plugins that the user named; nothing is imported where there are none."""
    if plugin:
        from cme_bench.adapters.plugins import load_plugins as load

        load(plugin)
