"""Packs: rows of one fixed number of tokens, filled with whole examples, so that every step has known shapes.

Position ids begin at 0 with every example, as in :mod:`cme_bench.training.packing`, and are 0 in the padding:
nobody sees it. A GPU that gets the same shapes again can replay its work instead of being told it anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

UNIT = 64
"""Packs are so many tokens long, or a multiple of it."""
LONGEST = 4096
"""Longer packs are made only where an example needs them, or where attention looks at each example alone:
elsewhere its cost grows with their square."""
_SAMPLE = 200
USUAL_PACKS = 6
"""Packs of a batch, at most about: each number of packs is a shape of its own."""
_PARTS = 8


def fill(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Return the examples of each pack, as indices into ``lengths``: longest first, each into the first pack
    with room.

    ValueError if one is longer than ``width``.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[index] > width:
            raise ValueError(f"{lengths[index]} tokens do not fit into a pack of {width}")
        place = next((i for i, left in enumerate(room) if left >= lengths[index]), None)
        if place is None:
            place = len(packs)
            packs.append([])
            room.append(width)
        packs[place].append(index)
        room[place] -= lengths[index]
    return packs


def choose_width(lengths: NDArray[np.int64], batches: Sequence[Sequence[int]], *, apart: bool) -> int:
    """Return the tokens of a pack that leave the least padding in these batches, of some of them.

    At least the longest example's, and so many that a batch takes about ``USUAL_PACKS`` of them or fewer;
    among equals the longest. ``apart``: attention looks at each example alone, so that one pack may hold any
    batch whole.
    """
    sample = [[int(lengths[i]) for i in batch] for batch in batches[:: max(1, len(batches) // _SAMPLE)]]
    mean = sum(map(sum, sample)) / len(sample)
    least = _whole(max(int(lengths.max()), min(int(mean) // USUAL_PACKS, LONGEST)))
    widths = list(range(least, max(LONGEST, least) + 1, 4 * UNIT))
    if apart:
        widths.append(_whole(max(int(lengths[batch].sum()) for batch in batches)))
    places = {width: width * sum(len(fill(batch, width)) for batch in sample) for width in widths}
    return min(places, key=lambda width: (places[width], -width))


def most_learnt(learnt: NDArray[np.int64], batches: Sequence[Sequence[int]]) -> int:
    """Return a number of tokens that no batch learns more of, from those that each example teaches."""
    return _whole(max(int(learnt[batch].sum()) for batch in batches))


def _whole(tokens: int) -> int:
    """Return the tokens, rounded up to a multiple of ``UNIT``."""
    return -(-tokens // UNIT) * UNIT


def static_places(labels: Tensor, ignored: int, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the places, in the flattened batch, that predict a learnt token, and those tokens.

    Both are int64 [n], n the same for batches that learn about as much, or ``most`` where it is known; the
    rest is filled with place 0 and the label ``ignored``.
    """
    rows, width = labels.shape
    following = torch.full_like(labels, ignored)
    following[:, :-1] = labels[:, 1:]
    flat = following.flatten()
    learnt = (flat != ignored).nonzero().squeeze(-1)
    step = max(1, rows * width // _PARTS)
    size = most if most is not None and len(learnt) <= most else -(-len(learnt) // step) * step
    places = torch.zeros(size, dtype=torch.int64)
    targets = torch.full((size,), ignored, dtype=torch.int64)
    places[: len(learnt)], targets[: len(learnt)] = learnt, flat[learnt]
    return places, targets


def boundaries(mask: Tensor, position_ids: Tensor, examples: int, longest: int | None = None) -> Tensor:
    """Return where each example of the flattened packs begins, and the end of all: int32 [most + 1].

    The padding of a pack counts as examples of ``longest`` tokens (by default, one); behind the last one the
    end is repeated. ``most`` hangs on the number of ``examples``, the packs' shape and ``longest`` alone.
    """
    rows, width = mask.shape
    longest = longest or width
    behind = torch.arange(width) - mask.sum(1, keepdim=True)  # place in the padding, which ends a row
    begins = torch.where(mask.bool(), position_ids == 0, behind % longest == 0)
    most = examples + rows * -(-width // longest)
    found = torch.full((most + 1,), mask.numel(), dtype=torch.int32)
    starts = begins.flatten().nonzero().squeeze(-1).to(torch.int32)
    found[: len(starts)] = starts
    return found
