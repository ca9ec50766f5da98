"""Dropout of adapters that are trained together, each drawing from a generator of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Draw = Callable[[Tensor, float], Tensor]
"""Input and probability -> what the input is multiplied by, in its shape or one that broadcasts to it."""


class OwnDropout(TorchFunctionMode):
    """Take the factors of every dropout in the block from ``draw``, in the order of the calls."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self._draw = draw

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.dropout:
            return self._dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return x * self._draw(x, p) if training and p else x


def drawn(like: Tensor, widths: Sequence[int], p: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Return factors of 0 or 1 / (1 - p), [generators, *like.shape], as torch's dropout draws on a CPU.

    ``like``: [rows, length, ...]. Of each generator only the first of ``widths`` places of a row are drawn,
    so that padding which other adapters need costs no numbers; the rest are 0.
    """
    shape = (len(generators), *like.shape)
    whole = all(width == like.shape[1] for width in widths)
    found = (torch.empty if whole else torch.zeros)(shape, dtype=like.dtype, device=like.device)
    for own, width, generator in zip(found, widths, generators, strict=True):
        if width == like.shape[1]:
            own.bernoulli_(1 - p, generator=generator)
        else:
            drawn = torch.empty_like(own[:, :width], memory_format=torch.contiguous_format)
            own[:, :width] = drawn.bernoulli_(1 - p, generator=generator)
    return found.div_(1 - p)
