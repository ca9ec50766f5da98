"""Packed rows: the examples of a batch laid end to end, so that little of it is padding.

Position ids begin at 0 with every example. transformers finds the examples by them and lets none see another,
if it is given no attention mask (``transformers.masking_utils.find_packed_sequence_indices``). Not every
architecture or attention can do so: :func:`check_packing` tries it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cme_bench.training.varlen import VARLEN, available, bound_examples
from cme_bench.util.errors import UsageError

_PIECE = 8
"""Tokens of the examples that packing is tried on."""
_TOLERANCE, _COARSE = 0.1, 0.3
"""Packing may change hidden states, by rounding, by this share of what seeing another example does: in
float32, and in less. SmolLM2, of 30 layers, is at 0.12 in bfloat16."""


def pack(lengths: Sequence[int], per_row: int) -> list[list[int]]:
    """Return the examples of each row, as indices into ``lengths``; every example is in one row.

    A row holds at most ``per_row`` times the longest example: attention's cost grows with the square of a
    row. There are as few rows as that allows, filled longest example first, each into the shortest row
    (Graham's "longest processing time"): rows become equally long. Rows filled up one after another would
    leave the last one short, and a batch is as wide as its longest row.
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    limit = per_row * max(lengths)
    for number in count(-(-sum(lengths) // limit)):
        rows: list[list[int]] = [[] for _ in range(number)]
        filled = [0] * number
        for index in longest_first:
            shortest = filled.index(min(filled))
            rows[shortest].append(index)
            filled[shortest] += lengths[index]
        if max(filled) <= limit:
            break
    return rows


def prefer_varlen(model: PreTrainedModel, dtype: torch.dtype, note: Callable[[str], None]) -> None:
    """Let a model attend by where examples begin, if torch can on its device and the model keeps to it."""
    if model.device.type == "cuda" and not available(model.device, dtype):
        return
    before = model.config._attn_implementation
    bound_examples(model, None)
    try:
        model.set_attn_implementation(VARLEN)
        check_packing(model)
    except (UsageError, ValueError, RuntimeError) as error:
        model.set_attn_implementation(before)
        note(f"note: attention stays {before} ({error})")


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Compare examples in packed rows with the same ones apart, on the model itself.

    Raises UsageError if their hidden states differ: an architecture or attention that goes by no position
    ids, or only in a batch of one row.
    """
    ids = torch.arange(4 * _PIECE, device=model.device).view(2, 2 * _PIECE)
    places = torch.arange(_PIECE, device=model.device).repeat(2, 2)
    training = model.training
    model.eval()
    try:
        apart = _hidden(model, ids.view(4, _PIECE))
        mixed = _hidden(model, ids).view_as(apart)
        starts = torch.arange(0, ids.numel() + 1, _PIECE, dtype=torch.int32, device=model.device)
        known = {"starts": starts} if model.config._attn_implementation == VARLEN else {}
        packed = _hidden(model, ids, position_ids=places, **known).view_as(apart)
    finally:
        model.train(training)
    most = _TOLERANCE if model.dtype.itemsize >= torch.float32.itemsize else _COARSE
    if not (packed - apart).norm() < most * (mixed - apart).norm():
        raise UsageError(
            f"--pack: {type(model).__name__} with {model.config._attn_implementation} attention does not "
            "keep packed examples apart"
        )


def _hidden(model: PreTrainedModel, ids: Tensor, **places: Tensor) -> Tensor:
    states: Tensor = model.base_model(input_ids=ids, use_cache=False, **places).last_hidden_state
    return states.float()
