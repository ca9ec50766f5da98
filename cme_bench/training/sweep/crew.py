"""Adapters that are trained together, step by step, each with a state of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from accelerate.utils import set_seed
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from cme_bench.training import schedule
from cme_bench.training.batches import collate, count_targets, count_tokens, width_multiple
from cme_bench.training.prepared import Prepared
from cme_bench.training.sweep.slots import Slot
from cme_bench.training.sweep.together import Group, Together


class Crew:
    """Put ``members`` on ``base`` and train them from ``step`` on; ``states``: of those that go on.

    All have made the same steps, and have as many batches a step.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        members: Sequence[Prepared],
        *,
        step: int,
        states: Mapping[str, Mapping[str, Any]],
        bf16: bool,
    ) -> None:
        self.members, self.step = list(members), step
        self._device, self._bf16 = base.device, bf16
        self.slots = [Slot(base, member.config, seed=member.options.seed) for member in members]
        for slot in self.slots:
            for layer in slot.layers.values():
                layer.train()
        self._generators = [_generator(member.options.seed, base.device) for member in members]
        keys = [(i if m.options.pack else None, m.options.batch_size) for i, m in enumerate(members)]
        self._together = Together(base, self.slots, self._generators, keys)
        for number, member in enumerate(members):
            if member.name in states:
                self._restore(number, states[member.name])

    def close(self) -> None:
        """Take the adapters off the base."""
        self._together.close()

    def alone(self, number: int) -> AbstractContextManager[PeftModel]:
        """Return a context in which the base carries one member's adapter and no other."""
        return self._together.alone(number)

    def advance(self) -> Tensor:
        """Make one step; return its sums, [members, 4]: loss, target tokens, tokens, and the balance loss."""
        sums = self._accumulate([self._batches(member) for member in self.members])
        for group in self._together.groups:
            self._update(group)
        self.forget_gradients()
        self.step += 1
        return sums

    def forget_gradients(self) -> None:
        """Set all gradients to zero, as after a step that did not fit in memory."""
        for group in self._together.groups:
            group.numbers.grads.zero_()

    def _batches(self, member: Prepared) -> list[dict[str, Tensor]]:
        """Return a member's batches of this step."""
        options, plan = member.options, member.plan
        planned = plan.batches[self.step * options.accumulate :][: options.accumulate]
        return [
            collate(
                [plan.examples[i] for i in batch],
                member.pad_token,
                width_multiple(self._device.type),
                options.pack,
            )
            for batch in planned
        ]

    def _accumulate(self, batches: Sequence[Sequence[dict[str, Tensor]]]) -> Tensor:
        targets, tokens = (
            torch.tensor([[float(count(batch)) for batch in own] for own in batches]).sum(1)
            for count in (count_targets, count_tokens)
        )
        weights = (1.0 / targets.clamp_min(1)).to(self._device)
        losses: list[Tensor] = []
        for turn in zip(*batches, strict=True):
            moved = [{key: value.to(self._device) for key, value in batch.items()} for batch in turn]
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                losses.append(self._together.backward(moved, weights, accumulated=len(batches[0])))
        summed = torch.stack(losses).double()
        nll, balance = summed[..., 0].sum(0), summed[..., 1].mean(0)
        return torch.stack([nll, targets.to(nll), tokens.to(nll), balance], dim=1)

    def _update(self, group: Group) -> None:
        members = [self.members[i] for i in group.slots]
        tensor = partial(torch.tensor, dtype=torch.float32, device=self._device)
        most = tensor([m.options.max_grad_norm or float("inf") for m in members])
        norms = group.numbers.norms()
        group.numbers.scale_grads((most / (norms + 1e-6)).clamp(max=1.0))
        rates = tensor([rate(member, self.step) for member in members])
        decays = tensor([member.options.weight_decay for member in members])
        group.numbers.adamw(self.step + 1, rates, decays)
        if group.ranks is not None:
            group.ranks.allocate(self.step)

    def detach(self, number: int) -> None:
        """Give a member's numbers memory of their own, as for saving; until now it is the crew's."""
        for parameter in self.slots[number].parameters().values():
            parameter.data = parameter.data.clone()

    def states(self) -> dict[str, dict[str, Any]]:
        """Return what each member needs to go on, on the CPU."""
        found = {}
        for group in self._together.groups:
            for row, number in enumerate(group.slots):
                held: dict[str, Any] = {
                    name: t[row].cpu().clone() for name, t in group.numbers.state().items()
                }
                found[self.members[number].name] = held | {
                    "step": self.step,
                    "generator": self._generators[number].get_state(),
                    "ranks": None if group.ranks is None else group.ranks.state(row),
                }
        return found

    def _restore(self, number: int, state: Mapping[str, Any]) -> None:
        group = next(g for g in self._together.groups if number in g.slots)
        row = number - group.slots.start
        for name, held in group.numbers.state().items():
            held[row].copy_(state[name])
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
