"""Plans of what several engines are asked alike: adapters of one base get the same questions, one after the
other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any, TypeAlias

from cme_bench.engines.contexts import Contexts
from cme_bench.engines.packs import Pack
from cme_bench.engines.plan import PlanLimits, plan_packs
from cme_bench.engines.requests import TokenIds

MOST_TOKENS = 2_000_000
"""Of packs that are kept: some fifty bytes each."""
Rows: TypeAlias = Sequence[tuple[TokenIds, TokenIds]]


class KeptPlans:
    """Keep the packs that were planned, of ``most`` tokens in all."""

    def __init__(self, most: int = MOST_TOKENS) -> None:
        self._room = most
        self._kept: dict[tuple[Any, ...], list[Pack]] = {}

    def packs(self, rows: Rows, limits: PlanLimits) -> Iterator[Pack]:
        """Yield the packs of ``rows`` as ``plan_packs`` does, planned once for equal rows and limits.

        A plan is kept once all of it was taken, unless ``limits`` shrank meanwhile.
        """
        asked = astuple(limits)
        key = (*_distinct(rows), asked)
        if (kept := self._kept.get(key)) is not None:
            yield from kept
            return
        made: list[Pack] = []
        tokens = 0
        for pack in plan_packs(rows, limits):
            tokens += pack.n_tokens
            if tokens <= self._room:
                made.append(pack)
            else:
                made.clear()
            yield pack
        if tokens <= self._room and astuple(limits) == asked:
            self._room -= tokens
            self._kept[key] = made


def _distinct(rows: Rows) -> tuple[Any, Any]:
    """Return what tells ``rows`` from all others, with each context in it once."""
    contexts = Contexts()
    numbered = tuple((contexts.number(context), continuation) for context, continuation in rows)
    return contexts.distinct, numbered
