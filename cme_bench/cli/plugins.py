"""The option of every command that loads adapters: whose methods they may be."""

from __future__ import annotations

from typing import Annotated

from cme_bench.util.options import Option


def load_plugins(plugins: list[str]) -> tuple[str, ...]:
    """Run the plugins that the user named, and return their names."""
    from cme_bench.adapters.plugins import load_plugins as load

    load(plugins)
    return tuple(plugins)


Plugins = Annotated[
    tuple[str, ...],
    Option(
        "Adapter methods of yours: its code is run. Give it several times for several.",
        flag="--plugin",
        metavar="FILE.py|MODULE",
        parse=load_plugins,
    ),
]
"""Plugins are loaded while options are read, so that every other option may name what they register."""
