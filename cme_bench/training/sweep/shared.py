"""A layer of the base that serves the rows of many adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.func import vmap

from cme_bench.adapters.routing.hooks import Heard
from cme_bench.adapters.routing.router import Routing
from cme_bench.adapters.shared.layer import AdapterLinear
from cme_bench.adapters.shared.linears import frozen_plain
from cme_bench.training.sweep.call import Drops, call
from cme_bench.training.sweep.joint import Joint, add_joints, product_dtype
from cme_bench.training.sweep.noise import OwnDropout, drawn
from cme_bench.training.sweep.turn import Turn


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
            (config,) = getattr(self._layer, "settings", {None: None}).values()
            for routing in heard:
                tape.hear(Heard("", "", config, routing, mask))
        return torch.cat([updated, output[:, width:]], dim=1) if width < output.shape[1] else updated


class Stacked:
    """The layers of adapters that differ in nothing but numbers, computed together.

    ``parameters``: by name in the layer, [adapters, ...]. Their batches have the same number of rows.
    """

    def __init__(self, slots: range, layer: Any, parameters: Mapping[str, Tensor], turn: Turn) -> None:
        self.slots = slots
        self.writes = _writes(layer)
        self._layer, self._parameters, self._turn = layer, dict(parameters), turn
        self._drops = Drops(layer, lambda: {name: each[0] for name, each in self._parameters.items()})

    def update(self, x: Tensor, output: Tensor) -> Tensor:
        """Return ``output`` of the base with the layers' updates, both for the adapters' own rows."""
        count, turn = len(self.slots), self._turn
        xs, outputs = (part.reshape(count, -1, *part.shape[1:]) for part in (x, output))
        noises = [] if x.is_cuda else self._noises(xs[0], outputs[0])

        def one(
            parameters: dict[str, Tensor], x: Tensor, output: Tensor, noises: list[Tensor]
        ) -> tuple[Tensor, list[Routing]]:
            left = iter(noises)
            with nullcontext() if x.is_cuda else OwnDropout(lambda *_: next(left)):
                return call(self._layer, parameters, x, output)

        results, heard = vmap(one, randomness="different")(self._parameters, xs, outputs, noises)
        for routing in heard:
            turn.tell(self.slots, self._layer, routing)
        whole: Tensor = results.flatten(0, 1)
        return whole

    def _noises(self, x: Tensor, output: Tensor) -> list[Tensor]:
        """Draw the factors of every dropout in the layer, [adapters, rows, length, ...] each."""
        turn = self._turn
        widths = [turn.widths[slot] for slot in self.slots]
        generators = [turn.generators[slot] for slot in self.slots]
        return [
            drawn(like.expand(*x.shape[:-1], *like.shape[2:]), widths, p, generators)
            for p, like in self._drops.found(x, output)
        ]


class SharedLayer(nn.Module):
    """``layer(x)`` of the base, computed once; then each adapter's layer on the rows that are its own.

    ``parts``: in the order of their slots. Rows of a slot that is in none stay as the base has them.
    ``joints``: by the number of their part, those whose update can be added to the base's product.
    """

    def __init__(
        self, layer: nn.Module, parts: Sequence[Alone | Stacked], joints: Mapping[int, Joint], turn: Turn
    ) -> None:
        super().__init__()
        self.layer, self._parts, self._turn = layer, tuple(parts), turn
        self._joints = dict(joints)

    def __getattr__(self, name: str) -> Any:
        """Return what a model may ask of its own layer, as its weight."""
        if name == "layer":
            return super().__getattr__(name)
        return getattr(self.layer, name)

    def forward(self, x: Tensor) -> Tensor:
        """Map [all rows, length, d_in] to [all rows, length, d_out]."""
        parts, linear = self._parts, self.layer
        if not (self._joints and frozen_plain(linear) and x.dtype == linear.weight.dtype == product_dtype(x)):
            return self._cut(x, linear(x), parts)
        output = add_joints(x, linear, list(self._joints.values()))
        return self._cut(x, output, [part for i, part in enumerate(parts) if i not in self._joints])

    def _cut(self, x: Tensor, output: Tensor, parts: Sequence[Alone | Stacked]) -> Tensor:
        """Return ``output`` with the updates of ``parts``, each of which gets rows of its own."""
        if not parts:
            return output
        taken: list[tuple[int, Alone | Stacked | None]] = []  # numbers of rows, and whose they are
        done = 0
        for part in parts:
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


def _writes(layer: Any) -> bool:
    """Return whether a layer may add to the base layer's output in place (AdaLoRA's does)."""
    return not isinstance(layer, AdapterLinear | LoraLinear)


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
