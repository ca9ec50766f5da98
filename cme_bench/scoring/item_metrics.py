"""The list of metrics of generated answers. A metric is one function under :func:`metric`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cme_bench.scoring.scales import ITEM_SCALES, SHARE, Better, Scale

Formula = Callable[[str, Sequence[str]], float]
"""From an extracted answer and the accepted texts to a number."""
_Function = TypeVar("_Function", bound=Formula)


@dataclass(frozen=True, slots=True)
class ItemMetric:
    """A metric of one item: of which answer types, and by which formula."""

    name: str
    types: tuple[str, ...]
    formula: Formula


ITEM_METRICS: dict[str, ItemMetric] = {}


def metric(
    name: str, *types: str, scale: Scale = SHARE, better: Better = "higher"
) -> Callable[[_Function], _Function]:
    """Register the function below as metric ``name`` of all tasks with these answer types.

    ``scale`` and ``better``: its range, and whether more is better. Items that are scored from then on have
    it, and so have results, tables and comparisons. Raises ValueError for a name that is taken.
    """

    def register(formula: _Function) -> _Function:
        if name in ITEM_METRICS:
            raise ValueError(f"metric {name!r} is registered already")
        ITEM_METRICS[name] = ItemMetric(name, types, formula)
        ITEM_SCALES[name] = (scale, better)
        return formula

    return register


def metrics_of(answer_type: str) -> tuple[ItemMetric, ...]:
    """Return the metrics that are registered for an answer type, in the order of their registration."""
    return tuple(one for one in ITEM_METRICS.values() if answer_type in one.types)
