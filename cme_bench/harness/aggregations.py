"""lm-eval's aggregations by name, and the name of one that a task has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cme_bench.scoring.macro_f1 import f1_macro


def aggregation_name(aggregate: Any) -> str:
    """Return lm-eval's name of an aggregation, or ``!function NAME`` for a task's own code."""
    from lm_eval.api.registry import aggregation_registry

    for name in aggregation_registry:
        if aggregation_registry.get(name) is aggregate:
            return str(name)
    return f"!function {getattr(aggregate, '__name__', 'unnamed')}"


def known_aggregation(name: str) -> Callable[[Any], float] | None:
    """Return lm-eval's aggregation of that name, or ours; None for one of a task's own code."""
    from lm_eval.api.registry import get_aggregation

    if name.startswith("!function"):
        return None
    aggregate: Callable[[Any], float] | None = f1_macro if name == "f1_macro" else get_aggregation(name)
    return aggregate
