"""A layer of the base that serves the rows of many adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.func import functional_call, vmap

from cme_bench.adapters.routing.balance import BalanceTape
from cme_bench.adapters.routing.hooks import Heard
from cme_bench.adapters.routing.router import Routing
from cme_bench.adapters.shared.layer import AdapterLinear
from cme_bench.training.sweep.low_rank import low_rank, updated
from cme_bench.training.sweep.noise import OwnDropout, drawn
from cme_bench.training.sweep.slots import GivenOutput


@dataclass(slots=True)
class Turn:
    """The rows of one forward pass: slot i has ``sizes[i]`` of them, of ``widths[i]`` tokens at most.

    ``generators``: of each slot's random numbers. ``tapes``: of each slot's balance loss, None without one.
    ``mask``: [all rows, length], true for tokens.
    """

    generators: list[torch.Generator]
    tapes: list[BalanceTape | None]
    sizes: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    mask: Tensor = field(default_factory=lambda: torch.ones(0))

    def begin(self, sizes: Sequence[int], widths: Sequence[int], mask: Tensor) -> None:
        """Start a forward pass."""
        self.sizes, self.widths, self.mask = list(sizes), list(widths), mask.bool()

    def rows(self, slots: range) -> slice:
        """Return the rows of neighbouring slots."""
        start = sum(self.sizes[: slots.start])
        return slice(start, start + sum(self.sizes[slots.start : slots.stop]))


class Alone:
    """One adapter's layer, of any method: it sees what it would see if it were trained alone."""

    def __init__(self, slot: int, layer: Any, turn: Turn) -> None:
        self.slots = range(slot, slot + 1)
        self.writes = _writes(layer)
        self._layer, self._turn = layer, turn

    def update(self, x: Tensor, output: Tensor) -> Tensor:
        """Return ``output`` of the base with the layer's update, both for the adapter's own rows."""
        turn, slot = self._turn, self.slots.start
        width, tape = turn.widths[slot], turn.tapes[slot]
        own = output[:, :width]
        with _random_numbers(turn.generators[slot]):
            updated, heard = call(self._layer, {}, x[:, :width], own)
        if tape is not None:
            mask = turn.mask[turn.rows(self.slots), :width]
            for routing in heard:
                tape.hear(_heard(self._layer, routing, mask))
        return torch.cat([updated, output[:, width:]], dim=1) if width < output.shape[1] else updated


class Stacked:
    """The layers of adapters that differ in nothing but numbers, computed together.

    ``parameters``: by name in the layer, [adapters, ...]. Their batches have the same number of rows.
    """

    def __init__(self, slots: range, layer: Any, parameters: Mapping[str, Tensor], turn: Turn) -> None:
        self.slots = slots
        self._factors = low_rank(layer)
        self.writes = self._factors is None and _writes(layer)
        self._layer, self._parameters, self._turn = layer, dict(parameters), turn
        self._drops: list[tuple[float, Tensor]] | None = None

    def update(self, x: Tensor, output: Tensor) -> Tensor:
        """Return ``output`` of the base with the layers' updates, both for the adapters' own rows."""
        count = len(self.slots)
        xs, outputs = (part.reshape(count, -1, *part.shape[1:]) for part in (x, output))
        noises = [] if x.is_cuda else self._noises(xs[0], outputs[0])
        if self._factors is not None:
            dropped = self._dropped(xs, outputs, noises)
            return updated(outputs, dropped, *self._factors(self._parameters)).flatten(0, 1)
        return self._mapped(xs, outputs, noises)

    def _dropped(self, xs: Tensor, outputs: Tensor, noises: Sequence[Tensor]) -> Tensor:
        """Return the inputs of low-rank layers, which drop from nothing else."""
        drops = self._found_drops(xs[0], outputs[0])
        if not drops:
            return xs
        return nn.functional.dropout(xs, drops[0][0]) if xs.is_cuda else xs * noises[0]

    def _mapped(self, xs: Tensor, outputs: Tensor, noises: list[Tensor]) -> Tensor:
        """Call the layer on the rows of all its adapters at once."""
        turn = self._turn

        def one(
            parameters: dict[str, Tensor], x: Tensor, output: Tensor, noises: list[Tensor]
        ) -> tuple[Tensor, list[Routing]]:
            left = iter(noises)
            with nullcontext() if x.is_cuda else OwnDropout(lambda *_: next(left)):
                return call(self._layer, parameters, x, output)

        results, heard = vmap(one, randomness="different")(self._parameters, xs, outputs, noises)
        masks = turn.mask[turn.rows(self.slots)].reshape(xs.shape[:3])
        for number, slot in enumerate(self.slots):
            tape = turn.tapes[slot]
            if tape is not None:
                for phi, omega in heard:
                    tape.hear(_heard(self._layer, Routing(phi[number], omega[number]), masks[number]))
        whole: Tensor = results.flatten(0, 1)
        return whole

    def _noises(self, x: Tensor, output: Tensor) -> list[Tensor]:
        """Draw the factors of every dropout in the layer, [adapters, rows, length, ...] each."""
        drops = self._found_drops(x, output)
        widths = [self._turn.widths[s] for s in self.slots]
        generators = [self._turn.generators[s] for s in self.slots]
        return [
            drawn(like.expand(*x.shape[:-1], *like.shape[2:]), widths, p, generators) for p, like in drops
        ]

    def _found_drops(self, x: Tensor, output: Tensor) -> list[tuple[float, Tensor]]:
        if self._drops is None:
            self._drops = self._find_drops(x, output)
        return self._drops

    @torch.no_grad()
    def _find_drops(self, x: Tensor, output: Tensor) -> list[tuple[float, Tensor]]:
        """Call the layer once to see its dropouts: the probability of each, and what it drops from."""
        found: list[tuple[float, Tensor]] = []

        def draw(dropped: Tensor, p: float) -> Tensor:
            found.append((p, dropped.new_empty((1, 1, *dropped.shape[2:]))))
            return torch.ones((), dtype=dropped.dtype, device=dropped.device)

        with OwnDropout(draw):
            once = {name: stacked[0] for name, stacked in self._parameters.items()}
            call(self._layer, once, x, output.clone())  # some layers add in place
        return found


class SharedLayer(nn.Module):
    """``layer(x)`` of the base, computed once; then each adapter's layer on the rows that are its own.

    ``parts``: in the order of their slots. Rows of a slot that is in none stay as the base has them.
    """

    def __init__(self, layer: nn.Module, parts: Sequence[Alone | Stacked], turn: Turn) -> None:
        super().__init__()
        self.layer, self._parts, self._turn = layer, tuple(parts), turn

    def __getattr__(self, name: str) -> Any:
        """Return what a model may ask of its own layer, as its weight."""
        if name == "layer":
            return super().__getattr__(name)
        return getattr(self.layer, name)

    def forward(self, x: Tensor) -> Tensor:
        """Map [all rows, length, d_in] to [all rows, length, d_out]."""
        output: Tensor = self.layer(x)
        taken: list[tuple[int, Alone | Stacked | None]] = []  # numbers of rows, and whose they are
        done = 0
        for part in self._parts:
            rows = self._turn.rows(part.slots)
            taken += [(rows.start - done, None), (rows.stop - rows.start, part)]
            done = rows.stop
        taken.append((len(x) - done, None))
        taken = [(size, part) for size, part in taken if size]
        sizes = [size for size, _ in taken]
        # slices instead would each have a gradient as large as x
        xs, pieces = torch.split(x, sizes), list(torch.split(output, sizes))
        for place, (_, owner) in enumerate(taken):
            if owner is not None:
                own = pieces[place].clone() if owner.writes else pieces[place]
                pieces[place] = owner.update(xs[place], own)
        return torch.cat(pieces)


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


def _writes(layer: Any) -> bool:
    """Return whether a layer may add to the base layer's output in place (AdaLoRA's does)."""
    return not isinstance(layer, AdapterLinear | LoraLinear)


def _heard(layer: Any, routing: Routing, mask: Tensor) -> Heard:
    (config,) = layer.settings.values()
    return Heard("", "", config, routing, mask)


@contextmanager
def _random_numbers(generator: torch.Generator) -> Iterator[None]:
    """Draw torch's random numbers from ``generator`` in the block on a CPU; a GPU has one for all."""
    if generator.device.type != "cpu":
        yield
        return
    before = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(before)
