"""One adapter's layer, called with numbers that are not its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from cme_bench.adapters.routing.router import Routing
from cme_bench.training.sweep.noise import OwnDropout
from cme_bench.training.sweep.slots import GivenOutput


def call(
    layer: Any, parameters: dict[str, Tensor], x: Tensor, output: Tensor
) -> tuple[Tensor, list[Routing]]:
    """Return what an adapter's layer makes of ``x``, and its routings.

    ``parameters`` take the place of the layer's own; ``output`` is the base layer's for ``x``.
    """
    heard: list[Routing] = []
    if isinstance(layer.base_layer, GivenOutput):
        layer.base_layer.output = output
    if hasattr(layer, "routing_listeners"):
        layer.routing_listeners = (lambda _, routing: heard.append(routing),)
    updated: Tensor = functional_call(layer, parameters, (x,)) if parameters else layer(x)
    return updated, heard


class Drops:
    """The dropouts of a layer, found by calling it once with ``parameters``."""

    def __init__(self, layer: Any, parameters: Callable[[], dict[str, Tensor]]) -> None:
        self._layer, self._parameters = layer, parameters
        self._found: list[tuple[float, Tensor]] | None = None

    @torch.no_grad()
    def found(self, x: Tensor, output: Tensor) -> list[tuple[float, Tensor]]:
        """Return the probability of each, and what it drops from, without values, [1, 1, ...]."""
        if self._found is not None:
            return self._found
        found: list[tuple[float, Tensor]] = []

        def draw(dropped: Tensor, p: float) -> Tensor:
            found.append((p, dropped.new_empty((1, 1, *dropped.shape[2:]))))
            return torch.ones((), dtype=dropped.dtype, device=dropped.device)

        with OwnDropout(draw):
            call(self._layer, self._parameters(), x, output.clone())  # some layers add in place
        self._found = found
        return found
