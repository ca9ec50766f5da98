"""Writing task files: the inverse of :mod:`cme_bench.harness.yaml_loader`, readable by lm-eval."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from cme_bench.harness.yaml_loader import FunctionRef


class _Dumper(yaml.SafeDumper):
    """Keys in the order given, no anchors, texts of several lines as literal blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = ("|" if value.strip() else '"') if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _function(dumper: yaml.SafeDumper, value: FunctionRef) -> yaml.ScalarNode:
    return dumper.represent_scalar("!function", value.name)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(FunctionRef, _function)


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return ``values`` as the text of a task file."""
    return yaml.dump(
        dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"), indent=2
    )


def dump_with_places(values: Mapping[str, Any], where: Mapping[str, str]) -> str:
    """Return ``values`` as the text of a task file, with a comment behind every key that says where it was
    written. ``where``: ``file:line`` by key, dotted below the top."""
    blocks = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            below = {sub: where[f"{key}.{sub}"] for sub in value if f"{key}.{sub}" in where}
            inner = textwrap.indent(dump_with_places(value, below), "  ")
            blocks.append(_with_comment(f"{key}:\n", where.get(key)) + inner)
        else:
            blocks.append(_with_comment(dump_yaml({key: value}), where.get(key)))
    return "".join(blocks)


def _with_comment(block: str, place: str | None) -> str:
    first, newline, rest = block.partition("\n")
    return f"{first}  # {place}{newline}{rest}" if place else block
