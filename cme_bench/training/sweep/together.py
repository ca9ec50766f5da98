"""One step of many adapters on one base: a forward and a backward pass over all their rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from transformers import PreTrainedModel

from cme_bench.adapters.decay import decayed_names
from cme_bench.adapters.routing.balance import BalanceTape
from cme_bench.training.loss import CHUNK_NUMBERS, output_head, placed_nlls, target_nlls
from cme_bench.training.memory import kept_by
from cme_bench.training.sweep.adalora import RankBudget, is_adalora
from cme_bench.training.sweep.flat import FlatParameters
from cme_bench.training.sweep.join import Joined
from cme_bench.training.sweep.joint import Joint, joint
from cme_bench.training.sweep.shared import Alone, SharedLayer, Stacked
from cme_bench.training.sweep.slots import Slot
from cme_bench.training.sweep.turn import Turn
from cme_bench.training.varlen import VARLEN


@dataclass(slots=True)
class Group:
    """Neighbouring slots that differ in nothing but numbers, and their trained numbers.

    ``ranks``: of AdaLoRAs.
    """

    slots: range
    numbers: FlatParameters
    ranks: RankBudget | None = None


class Together:
    """Put the adapters of ``slots`` on ``base``, neighbours of one configuration and key stacked.

    ``generators``: of each slot's dropout. ``keys``: slots of different keys have different numbers of rows.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        slots: Sequence[Slot],
        generators: Sequence[torch.Generator],
        keys: Sequence[object],
    ) -> None:
        self._base, self._slots = base, list(slots)
        balanced = [getattr(slot.config, "balance_coefficient", 0.0) > 0 for slot in slots]
        self.turn = Turn(list(generators), [BalanceTape() if each else None for each in balanced])
        self.groups = [self._group(members) for members in _neighbours(slots, keys)]
        self._head = output_head(base)
        linear: Any = base.get_output_embeddings()
        self._chunk = max(1, CHUNK_NUMBERS // int(linear.weight.shape[0]))
        self._mount()

    def _group(self, members: range) -> Group:
        first = self._slots[members.start]
        with first.mounted() as model:
            parameters = dict(model.named_parameters())
            decayed = {id(parameters[name]) for name in decayed_names(model)}
        undecayed = {name for name, p in first.parameters().items() if id(p) not in decayed}
        slots = [self._slots[i] for i in members]
        numbers = FlatParameters([s.parameters() for s in slots], undecayed=frozenset(undecayed))
        return Group(members, numbers, RankBudget(slots, numbers) if is_adalora(first) else None)

    def _mount(self) -> None:
        parts: dict[str, list[Alone | Stacked]] = {}
        joints: dict[str, dict[int, Joint]] = {}
        for group in self.groups:
            slot = self._slots[group.slots.start]
            for name, layer in slot.layers.items():
                own = partial(group.numbers.under, f"{name}.")
                added = joint(group.slots, layer, own, self.turn)
                if added is not None:
                    joints.setdefault(name, {})[len(parts.get(name, ()))] = added
                alone = len(group.slots) == 1
                parts.setdefault(name, []).append(
                    Alone(group.slots.start, layer, self.turn)
                    if alone
                    else Stacked(group.slots, layer, own(), self.turn)
                )
        self._own: dict[str, Any] = {name: self._base.get_submodule(name) for name in parts}
        self._shared = {
            name: SharedLayer(self._own[name], own, joints.get(name, {}), self.turn)
            for name, own in parts.items()
        }
        self._put(self._shared)

    def _put(self, layers: Mapping[str, nn.Module]) -> None:
        """Set layers of the base, those in a block before the block."""
        inner_first = sorted(layers, key=lambda name: -name.count("."))
        for name in inner_first if layers is self._shared else reversed(inner_first):
            self._base.set_submodule(name, layers[name])

    def close(self) -> None:
        """Take the adapters off the base."""
        self._put(self._own)

    @contextmanager
    def alone(self, number: int) -> Iterator[PeftModel]:
        """Leave the base to one slot for the block, as if its adapter were the only one."""
        self._put(self._own)
        try:
            with self._slots[number].mounted() as model:
                yield model
        finally:
            self._put(self._shared)

    def backward(self, joined: Joined, weights: Tensor, *, accumulated: int) -> Tensor:
        """Add the gradients of one batch of each slot; return summed loss and balance loss, [slots, 2].

        Args:
            joined: The batches of all slots.
            weights: One over the target tokens of each slot's step, [slots].
            accumulated: Batches of the step, over which the balance loss is a mean.
        """
        self.turn.begin(joined.sizes, joined.widths, joined.tensors["attention_mask"])
        summed = self._losses(joined)
        balances = torch.stack(
            [summed.new_zeros(()) if tape is None else tape.loss() for tape in self.turn.tapes]
        )
        losses = summed * weights + balances / accumulated
        extra = [group.ranks.regulariser().sum() for group in self.groups if group.ranks is not None]
        wholes = [self._whole(number, loss) for number, loss in enumerate(losses)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "grad and param do not obey")  # one array holds an adapter's
            torch.autograd.backward(torch.stack([*wholes, *extra]).sum())
        return torch.stack([summed.detach(), balances.detach()], dim=1)

    def kept_bytes(self, rows: Sequence[int], *, autocast: bool) -> int:
        """Return the bytes that autograd keeps for each token of a row, if slots have so many ``rows``.

        Found by a forward pass over a few tokens of all slots. Gradients and random numbers are as before.
        """
        base, turn = self._base, self.turn
        decoder: Any = base.base_model
        states = [generator.get_state() for generator in turn.generators]

        def forward(tokens: int) -> None:
            ids = torch.zeros((sum(rows), tokens), dtype=torch.int64, device=base.device)
            turn.begin(rows, [tokens] * len(rows), torch.ones_like(ids))
            decoder(input_ids=ids, use_cache=False)

        numbers = (group.numbers.values for group in self.groups)
        held = chain(base.parameters(), base.buffers(), numbers)
        try:
            return kept_by(forward, held, device=base.device, autocast=autocast)
        finally:
            for generator, state in zip(turn.generators, states, strict=True):
                generator.set_state(state)
            for tape in turn.tapes:
                if tape is not None:
                    tape.forget()

    def _losses(self, joined: Joined) -> Tensor:
        """Return the summed loss of each slot's target tokens, [slots]."""
        batch = joined.tensors
        places = batch.get("position_ids")
        seen = {"attention_mask": batch["attention_mask"]} if places is None else {"position_ids": places}
        if "starts" in batch and self._base.config._attn_implementation == VARLEN:
            seen["starts"] = batch["starts"]
        decoder: Any = self._base.base_model
        hidden = decoder(input_ids=batch["input_ids"], use_cache=False, **seen).last_hidden_state
        if "places" in batch:
            return placed_nlls(hidden, batch["places"], batch["targets"], self._head, chunk=self._chunk).sum(
                1
            )
        nlls, rows = target_nlls(hidden, batch["labels"], self._head, chunk=self._chunk)
        sizes = torch.tensor(joined.sizes, device=rows.device)
        owner = torch.repeat_interleave(torch.arange(len(sizes), device=rows.device), sizes)[rows]
        return torch.zeros(len(sizes), device=nlls.device).index_add(0, owner, nlls)

    def _whole(self, number: int, loss: Tensor) -> Tensor:
        """Return the loss with what the method's model adds to it."""
        if _is_plain(self._slots[number]):
            return loss
        tuner: Any = self._slots[number].model.base_model
        with self.alone(number):
            forward = self._base.forward
            self._base.forward = lambda: _Loss(loss + 0.0)
            try:
                whole: Tensor = tuner().loss
            finally:
                self._base.forward = forward
        return whole


@dataclass(slots=True)
class _Loss:
    loss: Tensor


def _neighbours(slots: Sequence[Slot], keys: Sequence[object]) -> list[range]:
    """Return ranges of slots of one configuration and key."""
    starts = [
        i for i in range(len(slots)) if i == 0 or keys[i - 1] != keys[i] or not _alike(slots[i - 1], slots[i])
    ]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(slots)], strict=True)]


def _alike(one: Slot, other: Slot) -> bool:
    shapes = [{name: p.shape for name, p in slot.parameters().items()} for slot in (one, other)]
    plain = _is_plain(one) and not one.whole_blocks
    return plain and one.config.to_dict() == other.config.to_dict() and shapes[0] == shapes[1]


def _is_plain(slot: Slot) -> bool:
    """Return whether the method's model adds nothing to the loss but what is done here."""
    return type(slot.model.base_model).forward is BaseTuner.forward or is_adalora(slot)
