"""The memory that a step of many adapters on one base needs."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from cme_bench.training.batches import Layout
from cme_bench.training.prepared import Prepared

_NUMBERS = 4 * (4 + 1)
"""Bytes of values, gradients and two moments of a trained number, and once more of what an update makes of
it."""
_SAMPLE = 100


def numbers_bytes(members: Sequence[Prepared]) -> int:
    """Return the bytes that the trained numbers of the members take, with all that is kept of them."""
    return _NUMBERS * sum(member.trained for member in members)


def rows_of(members: Sequence[Prepared], laid: Sequence[Layout]) -> list[int]:
    """Return numbers of rows that are to each other as those of the members' batches: in packs all alike."""
    if laid[0].width is not None:
        return [1] * len(members)
    sizes = [member.options.batch_size for member in members]
    return [size // gcd(*sizes) for size in sizes]


def most_places(member: Prepared, layout: Layout) -> int:
    """Return the places of a member's largest batch, of some of them."""
    lengths, batches = member.plan.examples.lengths, member.plan.batches
    sample = batches[:: max(1, len(batches) // _SAMPLE)]
    return max(layout.places([int(lengths[i]) for i in batch]) for batch in sample)
