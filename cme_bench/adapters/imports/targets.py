"""The ``target_modules`` of an imported adapter: short names where these are sure to mean the same layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

_INDEX = re.compile(r"(?P<before>.+?\.)(?P<i>\d+)\.(?P<rest>.+)")


def targets_of(modules: Sequence[str], base: nn.Module | None, said: Any) -> list[str]:
    """Return the target names of an adapter on exactly ``modules``.

    The last parts of the names where they match these linears of ``base`` and no other; else full names.
    Without a base, short names need as many layers as names for every linear, counted from 0, and settings
    (``said``) that name linears, not layers.
    """
    short = sorted({name.rpartition(".")[2] for name in modules})
    sure = _evenly(modules, said) if base is None else _matched(base, short) == set(modules)
    return short if sure else sorted(modules)


def _matched(base: nn.Module, short: Sequence[str]) -> set[str]:
    """Return the linears that PEFT adapts under these names, the output layer included."""
    names = (name for name, module in base.named_modules() if name and not list(module.children()))
    return {name for name in names if any(name == one or name.endswith(f".{one}") for one in short)}


def _evenly(modules: Sequence[str], said: Any) -> bool:
    if isinstance(said, str) or any("." in str(name) for name in said or ()):
        return False
    found = [match for name in modules if (match := _INDEX.fullmatch(name))]
    layers = {int(match["i"]) for match in found}
    whole = {
        (match["before"], i, rest) for match in found for i in layers for rest in {m["rest"] for m in found}
    }
    return len(found) == len(modules) == len(whole) and layers == set(range(len(layers)))
