"""AdaLoRA in a sweep: its regulariser and its importance scores, of all layers and adapters at once.

PEFT computes both by a loop over parameters, thousands of small operations a step, and waits for the device
at each of its layers. Here the scores are arrays beside the trained numbers, matrices of one shape are
multiplied together, and which ranks are kept is decided on the device; how many is PEFT's own schedule
(``RankAllocator``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
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
        names = list(slots[0].parameters())
        self._factors = [name for name in names if "lora_E" not in name]
        self._layers = [name for name in names if "lora_E" in name]
        self._places = numbers.places(self._layers)
        self._kept = torch.ones_like(self._places, dtype=torch.bool)
        self._cut = False
        self._config: Any = self._allocators[0].peft_config
        self._averages, self._doubts = torch.zeros_like(numbers.values), torch.zeros_like(numbers.values)

    def regulariser(self) -> Tensor:
        """Return what each adapter's loss gets on top, [adapters]: how far A and B are from orthogonal."""
        factors = {name: self._numbers.leaf(name) for name in self._factors}
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
            scores = self._importance()
            least = scores.kthvalue(self._allocators[0].init_bgt - budget, dim=1, keepdim=True).values
            self._kept, self._cut = ~(scores <= least), True
        elif step <= last:
            return
        values = self._numbers.values
        values[self._places] = values[self._places].where(self._kept, 0.0)

    def _importance(self) -> Tensor:
        """Return how much each rank matters, [adapters, ranks of all layers]: the score of its singular value
        and the mean scores of what it is multiplied with."""
        entries = self._averages * self._doubts
        found = []
        for name in self._layers:
            own, down, up = (self._numbers.of(entries, name.replace("lora_E", f"lora_{m}")) for m in "EAB")
            found.append(own.flatten(1) + (down.mean(2) + up.mean(1)))
        return torch.cat(found, dim=1)

    def pattern(self, row: int) -> dict[str, list[bool]] | None:
        """Return the ranks that an adapter keeps, by layer; None before some were cut."""
        if not self._cut:
            return None
        sizes = [self._numbers.of(self._numbers.values, name)[row].numel() for name in self._layers]
        kept = torch.split(self._kept[row].cpu(), sizes)
        return {name: each.tolist() for name, each in zip(self._layers, kept, strict=True)}

    def tell(self, row: int) -> None:
        """Write into an adapter's configuration which ranks it keeps, as for saving."""
        self._allocators[row].peft_config.rank_pattern = self.pattern(row)

    def _score(self) -> None:
        numbers, config = self._numbers, self._config
        sensitivity = (numbers.values * numbers.grads).abs()
        self._averages.mul_(config.beta1).add_(sensitivity, alpha=1 - config.beta1)
        apart = (sensitivity - self._averages).abs()
        self._doubts.mul_(config.beta2).add_(apart, alpha=1 - config.beta2)

    def state(self, row: int) -> dict[str, Any]:
        """Return what the allocation of one adapter needs to go on, on the CPU."""
        held = {"averages": self._averages, "doubts": self._doubts}
        found: dict[str, Any] = {name: self._numbers.row(part, row) for name, part in held.items()}
        return found | {"rank_pattern": self.pattern(row)}

    def load_state(self, row: int, state: Mapping[str, Any]) -> None:
        """Put what :meth:`state` returned back."""
        self._numbers.put_row(self._averages, row, state["averages"])
        self._numbers.put_row(self._doubts, row, state["doubts"])
        if (pattern := state["rank_pattern"]) is not None:
            kept = [rank for name in self._layers for rank in pattern[name]]
            self._kept[row], self._cut = self._kept.new_tensor(kept), True
