"""Rotary positions of float32 queries and keys by one kernel, where a model's own code takes ten.

They are a tenth of a small model's work on a GPU, and a fourth of the kernels of a step. No family is named:
a model's function is known by what it computes. Rounding is that of its own operations.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cme_bench.util.early import Early
from cme_bench.util.kernels import drawn, launched_on, tried

_NAME = "apply_rotary_pos_emb"
_HEADS = 4
"""Heads that a program turns at once."""
_LONGEST = 256
Pair: TypeAlias = tuple[Tensor, Tensor]


class QuickRotary:
    """The functions by which the code of ``model`` turns queries and keys, and one kernel instead."""

    def __init__(self, model: nn.Module) -> None:
        modules = {sys.modules[type(module).__module__] for module in model.modules()}
        found = [(module, module.__dict__.get(_NAME)) for module in modules]
        self._own = [(module, own) for module, own in found if own is not None and _is_rotary(own)]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Compute so within the context; the model's code is as it was afterwards."""
        before = [(module, module.__dict__[_NAME]) for module, _ in self._own]
        try:
            for module, own in self._own:
                _lend(module, functools.partial(_turned, own))
            yield
        finally:
            for module, own in before:
                _lend(module, own)


def _lend(module: ModuleType, function: Callable[..., Pair]) -> None:
    setattr(module, _NAME, function)


def _turned(own: Callable[..., Pair], *given: Any, **named: Any) -> Pair:
    """Return queries and keys as ``own`` turns them, by the kernel where it computes these."""
    if len(given) == 4 and not named and suits(*given):
        return turn(*given)
    return own(*given, **named)


def _is_rotary(own: Callable[..., Any]) -> bool:
    """Return whether a function turns queries and keys by halves, as ``turn_plainly`` does."""
    query, key, cos, sin = drawn(((2, 3, 5, 8), (2, 1, 5, 8), (2, 5, 8), (2, 5, 8)))
    try:
        found = own(query, key, cos, sin)
        pairs = zip(found, turn_plainly(query, key, cos, sin), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)
    except Exception:  # it takes other things
        return False


def suits(query: Any, key: Any, cos: Any, sin: Any) -> bool:
    """Return whether the kernel turns these, and works on their device."""
    states = (query, key, cos, sin)
    if not all(isinstance(x, Tensor) and x.is_cuda and x.dtype == torch.float32 for x in states):
        return False
    rows, _, tokens, size = query.shape
    fits = size % 2 == 0 and size <= _LONGEST and torch.version.hip is None and not torch.is_grad_enabled()
    whole = all(x.shape[-2:] == (tokens, size) and x.stride(-1) == 1 for x in states)
    placed = all(x.is_contiguous() and x.shape[0] in {1, rows} for x in (cos, sin)) and cos.shape == sin.shape
    return fits and whole and placed and key.shape[0] == rows and _works(query.device)


def turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Return queries [rows, heads, n, size] and keys turned by ``cos`` and ``sin`` [rows or 1, n, size].

    Their heads lie side by side, token after token, as a product leaves them.
    """
    from cme_bench.engines.hf.triton_rotary import rotary_kernel

    rows, heads, tokens, size = query.shape
    key_heads = key.shape[1]
    out = query.new_empty(rows, tokens, heads, size), key.new_empty(rows, tokens, key_heads, size)
    if rows * tokens:
        with launched_on(query):
            rotary_kernel[(rows * tokens,)](
                query,
                key,
                cos,
                sin,
                *out,
                tokens,
                *query.stride()[:3],
                *key.stride()[:3],
                cos.stride(0) if cos.shape[0] == rows else 0,
                heads,
                key_heads,
                size // 2,
                HALF=1 << (size // 2 - 1).bit_length(),
                HEADS=_HEADS,
                num_warps=1,
                enable_fp_fusion=False,  # two products and their sum, each rounded
            )
    return out[0].transpose(1, 2), out[1].transpose(1, 2)


def turn_plainly(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Return what ``turn`` does, by operations of torch."""
    cos, sin = cos[:, None], sin[:, None]
    return query * cos + _partners(query) * sin, key * cos + _partners(key) * sin


def _partners(x: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return torch.cat((-high, low), -1)


def build_early(device: torch.device) -> None:
    """Build the kernel in another thread: it takes a second, while weights load."""
    if device.type == "cuda" and torch.version.hip is None:
        number = torch.cuda.current_device() if device.index is None else device.index
        _trial(torch.device("cuda", number))


def _works(device: torch.device) -> bool:
    return _trial(device).result()


@functools.cache
def _trial(device: torch.device) -> Early[bool]:
    """Find whether the kernel can be built for a device, and computes there what torch does; once."""
    return tried(lambda: _turns(device), "rotary positions are computed by torch's operations, slower")


def _turns(device: torch.device) -> bool:
    """Return whether it turns drawn states, laid as a product leaves them, to the last digit."""
    for rows, tokens, heads, size, placed in ((1, 67, 9, 64, 1), (3, 1, 4, 24, 3), (2, 5, 5, 64, 1)):
        shapes = (rows, tokens, heads, size), (rows, tokens, 3, size), *[(placed, tokens, size)] * 2
        query, key, cos, sin = (numbers.to(device) for numbers in drawn(shapes))
        given = query.transpose(1, 2), key.transpose(1, 2), cos, sin
        pairs = zip(turn(*given), turn_plainly(*given), strict=True)
        if not all(torch.equal(one, other) for one, other in pairs):
            return False
    return True
