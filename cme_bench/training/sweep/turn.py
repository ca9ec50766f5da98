"""The rows of one forward pass of many adapters, and what is heard of their routers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cme_bench.adapters.routing.balance import BalanceTape
from cme_bench.adapters.routing.gate_kernels import drop, drops
from cme_bench.adapters.routing.hooks import Heard
from cme_bench.adapters.routing.router import Routing


@dataclass(slots=True)
class Turn:
    """The rows of one forward pass: slot i has ``sizes[i]`` of them, of ``widths[i]`` tokens at most.

    ``generators``: of each slot's random numbers. ``tapes``: of each slot's balance loss, None without one.
    ``mask``: [all rows, length], true for tokens. ``seed``: of a GPU's dropout in this pass, int64 [1], drawn
    there; ``draws``: how often it was used.
    """

    generators: list[torch.Generator]
    tapes: list[BalanceTape | None]
    sizes: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    mask: Tensor = field(default_factory=lambda: torch.ones(0))
    seed: Tensor | None = None
    draws: int = 0

    def begin(self, sizes: Sequence[int], widths: Sequence[int], mask: Tensor) -> None:
        """Start a forward pass."""
        self.sizes, self.widths, self.mask = list(sizes), list(widths), mask.bool()
        self.seed, self.draws = None, 0

    def dropped(self, x: Tensor, p: float) -> tuple[Tensor, Tensor]:
        """Return ``x`` after dropout on a GPU, and which of its elements were kept."""
        if not drops(x.device):
            return torch.native_dropout(x, p, True)
        if self.seed is None:
            self.seed = torch.randint(1 << 62, (1,), device=x.device)
        self.draws += 1
        return drop(x, p, self.seed, self.draws)

    def rows(self, slots: range) -> slice:
        """Return the rows of neighbouring slots."""
        start = sum(self.sizes[: slots.start])
        return slice(start, start + sum(self.sizes[slots.start : slots.stop]))

    def listens(self, slots: range) -> bool:
        """Return whether one of the slots has a balance loss."""
        return any(self.tapes[slot] is not None for slot in slots)

    def tell(self, slots: range, layer: Any, routing: Routing) -> None:
        """Let the balance losses of neighbouring slots hear what a layer's router says, [slots, ..., k]."""
        masks = self.mask[self.rows(slots)].reshape(len(slots), -1)
        (config,) = layer.settings.values()
        for number, slot in enumerate(slots):
            tape = self.tapes[slot]
            if tape is not None:
                phi, omega = (part[number].flatten(0, -2) for part in routing)
                tape.hear(Heard("", "", config, Routing(phi, omega), masks[number]))
