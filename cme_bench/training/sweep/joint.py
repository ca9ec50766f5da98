"""Layers of adapters whose update is added to the base's product (:mod:`.joined_linear`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cme_bench.adapters.routing.layer import RoutedLinear
from cme_bench.adapters.routing.narrow import Drop
from cme_bench.adapters.shared.layer import AdapterLinear
from cme_bench.training.sweep.call import Drops
from cme_bench.training.sweep.joined_linear import Gated, LowRank, Part, Update, joined_linear
from cme_bench.training.sweep.low_rank import low_rank
from cme_bench.training.sweep.noise import drawn
from cme_bench.training.sweep.turn import Turn

Parameters = Callable[[], Mapping[str, Tensor]]
"""The parameters of a layer by name in it, [adapters, ...]."""
_Form = Callable[[Mapping[str, Tensor], torch.dtype], tuple[Update, tuple[Tensor | None, ...]]]


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which ``x`` is multiplied."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class Joint:
    """The layers of neighbouring adapters that differ in nothing but numbers; see :func:`joint`."""

    def __init__(self, slots: range, layer: Any, form: _Form, parameters: Parameters, turn: Turn) -> None:
        self.slots, self.layer, self.turn = slots, layer, turn
        self._form, self._parameters = form, parameters
        self._drops = Drops(layer, lambda: {name: each[0] for name, each in parameters().items()})

    def part(self, x: Tensor, d_out: int) -> Part:
        """Return the update for the adapters' rows of ``x``, [all rows, length, d_in]."""
        turn, slots = self.turn, self.slots
        rows = turn.rows(slots)
        update, weights = self._form(self._parameters(), product_dtype(x))
        part = Part(update, rows, len(slots), weights, heard=turn.listens(slots))
        p = drop_probability(self.layer)
        if not p:
            return part
        own = part.of(x.detach())
        if x.is_cuda:
            seen, kept = turn.dropped(own, p)
            return part._replace(drop=Drop(kept, 1.0 / (1.0 - p)), seen=seen)
        [(_, like)] = self._drops.found(x[rows][:1], x.new_empty(1, x.shape[1], d_out))
        widths = [turn.widths[slot] for slot in slots]
        generators = [turn.generators[slot] for slot in slots]
        each = like.expand((rows.stop - rows.start) // len(slots), *x.shape[1:])
        return part._replace(drop=Drop(drawn(each, widths, p, generators).view(own.shape)))


def joint(slots: range, layer: Any, parameters: Parameters, turn: Turn) -> Joint | None:
    """Return the layers of ``slots``, like ``layer``, where their update can be added to the base's product.

    That is a product of two matrices, or what :func:`~cme_bench.adapters.routing.fused_linear.fused_linear`
    computes, with dropout on its input alone. None for any other.
    """
    form = _form(layer, parameters())
    return None if form is None else Joint(slots, layer, form, parameters, turn)


def _form(layer: Any, parameters: Mapping[str, Tensor]) -> _Form | None:
    factors = low_rank(layer)
    if factors is not None:
        return lambda given, _: (LowRank(), factors(given))
    if not isinstance(layer, RoutedLinear) or len(layer.active_adapters) != 1:
        return None
    (name,) = layer.active_adapters
    if layer.stacked(parameters, name, torch.float32) is None:
        return None

    def gated(given: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Update, tuple[Tensor | None, ...]]:
        found = layer.stacked(given, name, dtype)
        assert found is not None
        return Gated(found[1]), found[0]

    return gated


def drop_probability(layer: Any) -> float:
    """Return with which probability a layer that :func:`joint` takes drops an element of its input."""
    (name,) = layer.active_adapters
    if not layer.training:
        return 0.0
    if isinstance(layer, AdapterLinear):
        return layer.input_dropout(name)
    dropout = layer.lora_dropout[name]
    return float(dropout.p) if isinstance(dropout, nn.Dropout) else 0.0


def add_joints(x: Tensor, linear: nn.Linear, joints: Sequence[Joint]) -> Tensor:
    """Return ``linear(x)`` with the updates of all ``joints``, each for the rows of its own adapters."""
    parts = [each.part(x, linear.out_features) for each in joints]
    output, routings = joined_linear(x, linear.weight, linear.bias, parts)
    heard = iter(routings)
    for each, part in zip(joints, parts, strict=True):
        if part.heard:
            each.turn.tell(each.slots, each.layer, next(heard))
    return output
