"""Adapters that are trained together, step by step, each with a state of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import set_seed
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from cme_bench.training import schedule
from cme_bench.training.ahead import made_ahead
from cme_bench.training.fresh import leave_casts
from cme_bench.training.prepared import Prepared
from cme_bench.training.replay import Replay
from cme_bench.training.sweep.join import Joined
from cme_bench.training.sweep.making import Made, Making, layouts
from cme_bench.training.sweep.room import most_places, rows_of
from cme_bench.training.sweep.slots import Slot
from cme_bench.training.sweep.together import Group, Together
from cme_bench.training.varlen import bound_examples
from cme_bench.util.devices import sent

_APART = 1_000_003
"""Between the seeds of trainings that go on at neighbouring steps; a prime above all usual seeds."""


class Crew:
    """Put ``members`` on ``base`` and train them from ``step`` on; ``states``: of those that go on.

    All have made the same steps, and have as many batches a step. ``packed``: batches are laid out in packs
    unless options say otherwise. ``replay``: replay steps as a CUDA graph; told where that cannot be.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        members: Sequence[Prepared],
        *,
        step: int,
        states: Mapping[str, Mapping[str, Any]],
        bf16: bool,
        packed: bool = False,
        replay: Callable[[str], None] | None = None,
    ) -> None:
        self.members, self.step = list(members), step
        self._device, self._bf16 = base.device, bf16
        self.slots = [Slot(base, member.config, seed=member.options.seed) for member in members]
        for slot in self.slots:
            for layer in slot.layers.values():
                layer.train()
            if bf16:
                leave_casts(slot.layers.values(), base.device)
        self._generators = [_generator(member.options.seed, base.device) for member in members]
        laid = layouts(members, base, packed=packed)
        bound_examples(base, laid[0].longest)
        keys = [(i if m.options.pack else None, m.options.batch_size) for i, m in enumerate(members)]
        self._together = Together(base, self.slots, self._generators, keys)
        for number, member in enumerate(members):
            if member.name in states:
                self._restore(number, states[member.name])
        self._replay: Replay | None = None
        if replay is not None and laid[0].width is not None and all(slot.static for slot in self.slots):
            self._replay = Replay(self._packed_backward, replay)
        if base.device.type == "cuda":  # whose dropout draws for all members together
            torch.cuda.manual_seed(members[0].options.seed + _APART * step)
        self._making = Making(self.members, laid, pinned=base.device.type == "cuda")
        self._made = made_ahead(self._making, range(step, min(member.plan.steps for member in members)))

    def close(self) -> None:
        """Take the adapters off the base."""
        self._made.close()
        self._together.close()

    def alone(self, number: int) -> AbstractContextManager[PeftModel]:
        """Return a context in which the base carries one member's adapter and no other."""
        group, row = self._place(number)
        if group.ranks is not None:
            group.ranks.tell(row)
        return self._together.alone(number)

    def step_bytes(self) -> int:
        """Return the bytes that a step keeps beside base and trained numbers, by an estimate: what autograd
        keeps for a few tokens of all members, times those of the largest batch."""
        laid = self._making.layouts
        rows = rows_of(self.members, laid)
        widest = max(
            -(-most_places(member, layout) // count)
            for member, layout, count in zip(self.members, laid, rows, strict=True)
        )
        return widest * self._together.kept_bytes(rows, autocast=self._bf16)

    def advance(self) -> Tensor:
        """Make one step; return its sums, [members, 4]: loss, target tokens, tokens, and the balance loss."""
        sums = self._accumulate(next(self._made))
        for group in self._together.groups:
            self._update(group)
        self.forget_gradients()
        self.step += 1
        return sums

    def forget_gradients(self) -> None:
        """Set all gradients to zero, as after a step that did not fit in memory."""
        for group in self._together.groups:
            group.numbers.grads.zero_()

    def _accumulate(self, made: Made) -> Tensor:
        targets, tokens = made.counts.to(self._device, non_blocking=True)
        weights = (1.0 / targets.clamp_min(1)).float()
        losses = [self._backward(turn.to(self._device), weights) for turn in made.turns]
        summed = torch.stack(losses).double()
        nll, balance = summed[..., 0].sum(0), summed[..., 1].mean(0)
        return torch.stack([nll, targets, tokens, balance], dim=1)

    def _backward(self, joined: Joined, weights: Tensor) -> Tensor:
        if self._replay is not None:
            return self._replay(joined.tensors, weights)
        return self._eager(joined, weights)

    def _eager(self, joined: Joined, weights: Tensor) -> Tensor:
        count = self.members[0].options.accumulate
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            return self._together.backward(joined, weights, accumulated=count)

    def _packed_backward(self, tensors: Mapping[str, Tensor], weights: Tensor) -> Tensor:
        """Do as :meth:`_backward` for packs, of which all members have as many."""
        return self._eager(Joined.of_packs(dict(tensors), len(self.members)), weights)

    def _update(self, group: Group) -> None:
        members = [self.members[i] for i in group.slots]
        rates = [rate(member, self.step) for member in members]
        decays = [member.options.weight_decay for member in members]
        most = sent([m.options.max_grad_norm or float("inf") for m in members], self._device)
        scales = ((group.numbers.norms() + 1e-6) / most).clamp(min=1.0)
        group.numbers.adamw(self.step + 1, rates, decays, scales)
        if group.ranks is not None:
            group.ranks.allocate(self.step)

    def detach(self, number: int) -> None:
        """Give a member's numbers memory of their own, as for saving; until now it is the crew's."""
        for parameter in self.slots[number].parameters().values():
            parameter.data = parameter.data.clone()

    def states(self, names: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
        """Return what each member, or each of ``names``, needs to go on, on the CPU."""
        found = {}
        for group in self._together.groups:
            for row, number in enumerate(group.slots):
                if names is not None and self.members[number].name not in names:
                    continue
                held: dict[str, Any] = {
                    name: group.numbers.row(t, row) for name, t in group.numbers.state().items()
                }
                found[self.members[number].name] = held | {
                    "step": self.step,
                    "generator": self._generators[number].get_state(),
                    "ranks": None if group.ranks is None else group.ranks.state(row),
                }
        return found

    def _place(self, number: int) -> tuple[Group, int]:
        """Return the group of a member, and its row there."""
        group = next(g for g in self._together.groups if number in g.slots)
        return group, number - group.slots.start

    def _restore(self, number: int, state: Mapping[str, Any]) -> None:
        group, row = self._place(number)
        for name, held in group.numbers.state().items():
            group.numbers.put_row(held, row, state[name])
        self._generators[number].set_state(state["generator"])
        if group.ranks is not None:
            group.ranks.load_state(row, state["ranks"])


def rate(member: Prepared, step: int) -> float:
    """Return the learning rate of a step, from 0."""
    return schedule.rate(member.options, member.plan.steps, step)


def _generator(seed: int, device: torch.device) -> torch.Generator:
    """Return a generator in the state in which a training of its own draws its first dropout."""
    set_seed(seed)
    torch.empty((), dtype=torch.int64).random_()  # the data loader's seed
    generator = torch.Generator(device)
    if device.type == "cpu":
        generator.set_state(torch.get_rng_state())
    else:
        generator.manual_seed(seed)
    return generator
