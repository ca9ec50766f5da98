"""Copies of a layer's weights, made once and kept while some engine multiplies with it; and of its input."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

MadeT = TypeVar("MadeT")
_SHARE = 0.4
"""Most of the free memory of a GPU that what is kept may take."""


class Kept(Generic[MadeT]):
    """A weight in the form that ``make`` gives it."""

    def __init__(self, weight: Tensor, make: Callable[[Tensor], MadeT]) -> None:
        self._make = make
        self.renew(weight)

    def renew(self, weight: Tensor) -> None:
        """Make it of a weight as it is now."""
        self.made = self._make(weight)
        self._weight, self._state = weakref.ref(weight), state_of(weight)

    def of(self, weight: Tensor) -> MadeT:
        """Return what was made, made anew once the layer has others, as far as torch tells."""
        if self._weight() is not weight or self._state != state_of(weight):
            self.renew(weight)
        return self.made


class Shelf(Generic[MadeT]):
    """Weights that engines keep, by the layer. Engines of one base share it: adapters come and go, it stays.

    ``agrees`` tells whether what was made still is of a weight: torch does not tell of every change.
    """

    def __init__(
        self, make: Callable[[Tensor], MadeT], agrees: Callable[[MadeT, Tensor], bool], size: int
    ) -> None:
        self._make, self._agrees, self._size = make, agrees, size
        self._alive: WeakValueDictionary[int, Kept[MadeT]] = WeakValueDictionary()

    def held(self, layer: nn.Linear) -> Kept[MadeT]:
        """Return what is kept of a layer, which is of its numbers as they are now."""
        found = self._alive.get(id(layer))
        if found is None:
            found = self._alive[id(layer)] = Kept(layer.weight, self._make)
        elif not self._agrees(found.of(layer.weight), layer.weight):
            found.renew(layer.weight)
        return found

    def why_no_room(self, layers: Iterable[nn.Linear]) -> str | None:
        """Return why what is not kept yet is too large, at ``size`` bytes a number; None if it fits."""
        new = [layer.weight for layer in layers if id(layer) not in self._alive and layer.weight.is_cuda]
        for device in {weight.device for weight in new}:
            needed = self._size * sum(weight.numel() for weight in new if weight.device == device)
            free, _ = torch.cuda.mem_get_info(device)
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            if reason := why_too_much(needed, free):
                return reason
        return None


def why_too_much(needed: int, free: int) -> str | None:
    """Return why copies of ``needed`` bytes are not made where so many are ``free``; None if they are."""
    if needed <= _SHARE * free:
        return None
    return f"copies of {needed / 2**30:.1f} GiB are too much for the {free / 2**30:.1f} GiB that are free"


class Once(Generic[MadeT]):
    """The last form of a layer's input, for the layers beside it: queries, keys and values have one."""

    def __init__(self) -> None:
        self._last: tuple[Hashable, Tensor, MadeT] | None = None

    def of(self, parent: Hashable, x: Tensor, make: Callable[[], MadeT]) -> MadeT:
        """Return what ``make`` makes of ``x``, or made of the very same for a layer with this ``parent``."""
        if self._last is None or self._last[0] != parent or self._last[1] is not x:
            self.forget()  # free it before there are others
            self._last = parent, x, make()
        return self._last[2]

    def found(self, x: Tensor) -> MadeT | None:
        """Return what was made of the very same ``x`` last, for whichever layer; None if that was another."""
        return self._last[2] if self._last is not None and self._last[1] is x else None

    def forget(self) -> None:
        """Free what was made."""
        self._last = None


def parent_of(layer: str) -> str:
    """Return the name of what a layer is part of; an adapter's layer around it is none."""
    return layer.removesuffix(".base_layer").rpartition(".")[0]


def adapters_own(model: nn.Module) -> set[nn.Module]:
    """Return modules within an adapter's layers that are not the base's."""
    own: set[nn.Module] = set()
    for layer in model.modules():
        if isinstance(base := getattr(layer, "base_layer", None), nn.Module):
            own |= set(layer.modules()) - set(base.modules())
    return own


def state_of(weight: Tensor) -> tuple[int, int]:
    """Return a weight's version and address: they change when it is written, as far as torch tells."""
    return 0 if weight.is_inference() else weight._version, weight.data_ptr()
