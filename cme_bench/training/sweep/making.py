"""The batches of a sweep's steps, made before they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cme_bench.training.batches import Layout, width_multiple
from cme_bench.training.choose import packs_are_free
from cme_bench.training.packs import choose_width, most_learnt
from cme_bench.training.prepared import Prepared
from cme_bench.training.sweep.join import Joined, join, join_packs
from cme_bench.training.varlen import looks_apart


def layouts(members: Sequence[Prepared], base: PreTrainedModel, *, packed: bool) -> list[Layout]:
    """Return how the batches of each member are laid out for ``base``.

    ``packed``: in packs of one fixed width for all, unless the options of a member say otherwise.
    """
    width = members[0].options.pack_tokens or None
    plans = list({id(m.plan): m.plan for m in members}.values())  # many share one
    if packed and all(packs_are_free(m.options) for m in members):
        apart = looks_apart(base)
        width = max(choose_width(plan.examples.lengths, plan.batches, apart=apart) for plan in plans)
    multiple = width_multiple(base.device.type)
    if width is None:
        return [Layout(m.pad_token, multiple, per_row=m.options.pack) for m in members]
    longest = max(int(plan.examples.lengths.max()) for plan in plans)
    learnt = max(most_learnt(plan.examples.target_lengths, plan.batches) for plan in plans)
    return [Layout(m.pad_token, multiple, width=width, longest=longest, learnt=learnt) for m in members]


@dataclass(frozen=True, slots=True)
class Made:
    """The batches of a step: of each turn of accumulation those of all members.

    ``counts``: target tokens and tokens of each member in the whole step, float64 [2, members].
    """

    turns: list[Joined]
    counts: Tensor


@dataclass(frozen=True, slots=True)
class Making:
    """Make the batches of ``members``, laid out as ``layouts`` say; ``pinned``: for a GPU."""

    members: Sequence[Prepared]
    layouts: Sequence[Layout]
    pinned: bool

    def __call__(self, step: int) -> Made:
        """Return the batches of a step, from 0."""
        count = self.members[0].options.accumulate
        turns = [self._turn(number) for number in range(step * count, (step + 1) * count)]
        counts = torch.stack([torch.stack(joined.counts()) for joined in turns]).sum(0).double()
        if self.pinned:
            return Made([joined.pinned() for joined in turns], counts.pin_memory())
        return Made(turns, counts)

    def _turn(self, number: int) -> Joined:
        examples = [[m.plan.examples[i] for i in m.plan.batches[number]] for m in self.members]
        if self.layouts[0].width is not None:
            return join_packs(self.layouts, examples)
        return join([layout.collate(own) for layout, own in zip(self.layouts, examples, strict=True)])
