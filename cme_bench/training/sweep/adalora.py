"""AdaLoRA in a sweep: its regulariser and its importance scores, of all layers and adapters at once.

PEFT computes both by a loop over parameters, thousands of small operations a step. Here the scores are
arrays beside the trained numbers, and matrices of one shape are multiplied together; what becomes of the
scores is PEFT's own (``RankAllocator``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import torch
from peft import AdaLoraModel
from torch import Tensor

from cme_bench.training.checkpoints import rank_allocator
from cme_bench.training.sweep.flat import FlatParameters
from cme_bench.training.sweep.slots import Slot


def is_adalora(slot: Slot) -> bool:
    """Return whether the slot's adapter is an AdaLoRA."""
    return isinstance(slot.model.base_model, AdaLoraModel)


class RankBudget:
    """Ranks and regulariser of AdaLoRAs of one configuration, as PEFT's allocator of each decides."""

    def __init__(self, slots: Sequence[Slot], numbers: FlatParameters) -> None:
        self._numbers = numbers
        self._allocators = [rank_allocator(slot.model) for slot in slots]
        self._named = [SimpleNamespace(named_parameters=slot.parameters().items) for slot in slots]
        self._names = list(slots[0].parameters())
        self._config: Any = self._allocators[0].peft_config
        self._averages, self._doubts = torch.zeros_like(numbers.values), torch.zeros_like(numbers.values)

    def regulariser(self) -> Tensor:
        """Return what each adapter's loss gets on top, [adapters]: how far A and B are from orthogonal."""
        factors = {name: self._numbers.leaf(name) for name in self._names if "lora_E" not in name}
        wide = [matrix if "lora_A" in name else matrix.mT for name, matrix in factors.items()]
        wide.sort(key=lambda matrix: matrix.shape)
        total = wide[0].new_zeros(len(self._allocators))
        for _, same in groupby(wide, key=lambda matrix: matrix.shape):
            rows = torch.stack(list(same))  # [layers, adapters, rank, d]
            apart = rows @ rows.mT - torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)
            total = total + torch.linalg.vector_norm(apart, dim=(-2, -1)).sum(dim=0)
        weight: float = self._config.orth_reg_weight
        return weight / len(wide) * total

    @torch.no_grad()
    def allocate(self, step: int) -> None:
        """Update scores and ranks after optimizer step ``step`` (from 0), as PEFT's model does."""
        last = self._config.total_step - self._config.tfinal
        if step < last:
            self._score()
        budget, due = self._allocators[0].budget_schedule(step)
        if (step < last and due) or step == last:
            for row, (allocator, named) in enumerate(zip(self._allocators, self._named, strict=True)):
                allocator.exp_avg_ipt = self._numbers.by_name(self._averages[row])
                allocator.exp_avg_unc = self._numbers.by_name(self._doubts[row])
                allocator.peft_config.rank_pattern = allocator.mask_to_budget(named, budget)
                allocator.reset_ipt()
        elif step > last:
            for allocator, named in zip(self._allocators, self._named, strict=True):
                allocator.mask_using_rank_pattern(named, allocator.peft_config.rank_pattern)

    def _score(self) -> None:
        numbers, config = self._numbers, self._config
        sensitivity = (numbers.values * numbers.grads).abs()
        self._averages.mul_(config.beta1).add_(sensitivity, alpha=1 - config.beta1)
        apart = (sensitivity - self._averages).abs()
        self._doubts.mul_(config.beta2).add_(apart, alpha=1 - config.beta2)

    def state(self, row: int) -> dict[str, Any]:
        """Return what the allocation of one adapter needs to go on, on the CPU."""
        held = {"averages": self._averages, "doubts": self._doubts}
        pattern = self._allocators[row].peft_config.rank_pattern
        return {name: part[row].cpu().clone() for name, part in held.items()} | {"rank_pattern": pattern}

    def load_state(self, row: int, state: Mapping[str, Any]) -> None:
        """Put what :meth:`state` returned back."""
        self._averages[row].copy_(state["averages"])
        self._doubts[row].copy_(state["doubts"])
        self._allocators[row].peft_config.rank_pattern = state["rank_pattern"]
