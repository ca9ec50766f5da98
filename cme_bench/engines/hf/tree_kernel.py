"""Attention of a pack as one GPU kernel, over the kept prefix and the pack at once.

torch's kernels take a mask with a number for every pair of a query and a key, and compute all of them. This
one computes the blocks of keys that some query sees. In a float32 model each number is three bfloat16 pieces,
as exact as float32 (:mod:`cme_bench.util.float32_pieces`); in a 16-bit model it is a float16 one.
"""

from __future__ import annotations

import functools
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cme_bench.engines.hf.attention import AttentionCall
from cme_bench.engines.hf.copies import to_device
from cme_bench.engines.packs import Ints, Pack
from cme_bench.util.early import Early
from cme_bench.util.exact_logits import NARROW
from cme_bench.util.float32_pieces import has_units, split
from cme_bench.util.kernels import drawn, launched_on, tried


class Factors(Enum):
    """Name what the kernel multiplies."""

    PIECES = "bfloat16 pieces"
    HALVES = "float16"

    @classmethod
    def of(cls, dtype: torch.dtype) -> Factors | None:
        """Return the factors for a model of this type; None if there are none."""
        if dtype == torch.float32:
            return cls.PIECES
        return cls.HALVES if dtype in NARROW else None


BLOCK = 64
_WIDTHS = frozenset({16, 32, 64, 128})
_TOLERANCE = {Factors.PIECES: 3e-5, Factors.HALVES: 2e-2}
"""Of a trial, the largest error as a share of the numbers: TF32 is at 1e-3, float16 at 4e-3."""
_TYPES = {Factors.PIECES: (torch.float32,), Factors.HALVES: (torch.float32, *NARROW)}
"""Types of the states that a kernel takes."""


class Sight(NamedTuple):
    """Tell a kernel who sees whom: ``ends`` [n] as of ``ends_of``; of each block of queries the blocks of
    keys that some of them see, ``blocks[lists[i] : lists[i + 1]]``. All are int32."""

    ends: Tensor
    lists: Tensor
    blocks: Tensor

    @classmethod
    def of(cls, pack: Pack, device: torch.device) -> Sight:
        """Return the sight of a pack's tokens within the pack."""
        ends = ends_of(pack)
        return cls(*(to_device(part.astype(np.int32), device) for part in (ends, *block_lists(ends))))


def ends_of(pack: Pack) -> Ints:
    """Return [n]: token j of the pack is seen by its tokens i with ``j <= i < end[j]``, and by no others."""
    return np.concatenate([start + u.end for start, u in zip(pack.starts, pack.units, strict=False)])


def block_lists(ends: Ints) -> tuple[Ints, Ints]:
    """Return ``(lists, blocks)`` of ``Sight``; a block of queries begins with its own keys, which all see."""
    firsts = np.arange(0, len(ends), BLOCK)
    farthest = np.maximum.reduceat(ends, firsts)
    last = np.maximum(-(-farthest // BLOCK), np.arange(len(firsts)) + 1)  # of blocks of queries, exclusive
    counts = last - np.arange(len(firsts))
    keys = np.repeat(np.arange(len(firsts)), counts)
    queries = keys + np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.lexsort((-keys, queries))
    return np.concatenate([[0], np.cumsum(np.bincount(queries, minlength=len(firsts)))]), keys[order]


def suits(call: AttentionCall, factors: Factors) -> bool:
    """Return whether the kernel computes such attention, and works on its device; windows are not asked."""
    states = (call.query, call.key, call.value)
    sizes = {part.shape[-1] for part in states}
    return (
        all(part.is_cuda and part.dtype in _TYPES[factors] and part.stride(-1) == 1 for part in states)
        and len(sizes) == 1
        and sizes <= _WIDTHS
        and call.softcap is None
        and has_units(call.query.device)
        and _works(call.query.device, sizes.pop(), factors)
    )


def attend(
    call: AttentionCall, sight: Sight, prefix: tuple[Tensor, Tensor] | None, factors: Factors
) -> Tensor:
    """Return attention of ``call`` over ``prefix`` and its own keys, [1, n, heads, size], float32.

    ``prefix``: keys and values [1, key heads, cached, size] that all see; None for none.
    """
    by = _by_pieces if factors is Factors.PIECES else _by_halves
    scale = call.query.shape[-1] ** -0.5 if call.scaling is None else call.scaling
    cached = 0 if prefix is None else prefix[0].shape[2]
    return by(call, sight, (call.key, call.value) if prefix is None else prefix, cached, scale)


def _by_pieces(
    call: AttentionCall, sight: Sight, prefix: tuple[Tensor, Tensor], cached: int, scale: float
) -> Tensor:
    from cme_bench.engines.hf.triton_tree import tree_kernel

    query, key, value = (_pieces(part) for part in (call.query, call.key, call.value))
    kept = tuple(_pieces(part) for part in prefix) if cached else (key, value)
    _, heads, tokens, width = call.query.shape
    out = query.new_empty(1, tokens, heads, width, dtype=torch.float32)
    with launched_on(query):
        tree_kernel[(-(-tokens // BLOCK), heads)](
            query,
            key,
            value,
            *kept,
            *sight,
            out,
            tokens,
            cached,
            heads,
            call.groups,
            scale,
            WIDTH=width,
            BLOCK=BLOCK,
            num_warps=4,
            num_stages=1,  # programs side by side hide the loads; more stages leave room for one program only
        )
    return out


def _by_halves(
    call: AttentionCall, sight: Sight, prefix: tuple[Tensor, Tensor], cached: int, scale: float
) -> Tensor:
    from cme_bench.engines.hf.triton_half_tree import half_tree_kernel

    states = (call.query, call.key, call.value, *prefix)
    _, heads, tokens, width = call.query.shape
    out = call.query.new_empty(1, tokens, heads, width, dtype=torch.float32)
    with launched_on(out):
        half_tree_kernel[(-(-tokens // BLOCK), heads)](
            *states,
            *sight,
            out,
            *(step for part in states for step in part.stride()[1:3]),
            tokens,
            cached,
            call.groups,
            scale,
            WIDTH=width,
            BLOCK=BLOCK,
            num_warps=4,
            num_stages=2,
        )
    return out


def _pieces(states: Tensor) -> Tensor:
    """Return [1, h, n, d] as three pieces [n, 3 h d], the small ones first."""
    return split(states[0].transpose(0, 1).flatten(1))


def build_early(config: Any, device: torch.device, factors: Factors) -> None:
    """Build the kernel for the heads of a model in another thread: it takes seconds, while weights load."""
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", None) or 1
    width = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 0) // heads
    if has_units(device) and width in _WIDTHS:
        number = torch.cuda.current_device() if device.index is None else device.index
        _trial(torch.device("cuda", number), width, factors)


def _works(device: torch.device, width: int, factors: Factors) -> bool:
    return _trial(device, width, factors).result()


@functools.cache
def _trial(device: torch.device, width: int, factors: Factors) -> Early[bool]:
    """Find whether the kernel can be built for a device, and is as exact as it should be; once."""
    otherwise = f"packs attend by torch's kernels, slower, and not by one of {factors.value}"
    return tried(lambda: _error(device, width, factors) < _TOLERANCE[factors], otherwise)


def _error(device: torch.device, width: int, factors: Factors) -> float:
    """Return how far the kernel is from the plain formula in float64, as a share of the numbers."""
    tokens, cached, heads, group = 3 * BLOCK - 5, BLOCK + 9, 4, 2
    shapes = [(heads, tokens), *[(heads // group, tokens)] * 2, *[(heads // group, cached)] * 2]
    states = [numbers.to(device) for numbers in drawn((1, *shape, width) for shape in shapes)]
    call = AttentionCall(torch.nn.Module(), states[0], states[1], states[2])
    ends = np.minimum(np.arange(tokens) // 20 * 20 + 50, tokens)
    given = (to_device(part.astype(np.int32), device) for part in (ends, *block_lists(ends)))
    kept = [part if factors is Factors.PIECES else part.half() for part in states[3:]]
    found = attend(call, Sight(*given), (kept[0], kept[1]), factors).double()
    wanted = plainly(call, ends, (states[3], states[4]))
    return float((found - wanted).abs().max() / wanted.square().mean().sqrt())


def plainly(call: AttentionCall, ends: Ints, prefix: tuple[Tensor, Tensor]) -> Tensor:
    """Return what ``attend`` does, in float64 and by all scores."""
    query, key, value = (part.double() for part in (call.query, call.key, call.value))
    key, value = (
        torch.cat((kept.double(), own), 2).repeat_interleave(call.groups, 1)
        for kept, own in zip(prefix, (key, value), strict=True)
    )
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if call.scaling is None else call.scaling)
    index = np.arange(len(ends))
    seen = torch.from_numpy((index <= index[:, None]) & (index[:, None] < ends))
    cached = prefix[0].shape[2]
    scores[..., cached:].masked_fill_(~seen.to(scores.device), -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)
