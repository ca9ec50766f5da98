"""The memory that a step of many adapters on one base needs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from peft import PeftConfig
from transformers import PreTrainedModel

from cme_bench.training.batches import Layout
from cme_bench.training.fresh import leave_casts
from cme_bench.training.memory import kept_bytes
from cme_bench.training.prepared import Prepared
from cme_bench.training.sweep.slots import Slot

_NUMBERS = 4 + 1
"""Values, gradients and two moments of the trained numbers, and once more what an update makes of them."""
_SAMPLE = 100


class Room:
    """Estimates bytes, from a forward pass over a few tokens with an adapter of each configuration."""

    def __init__(self, base: PreTrainedModel, *, bf16: bool) -> None:
        self._base, self._bf16 = base, bf16
        self._found: dict[str, tuple[int, int]] = {}

    def bytes(self, members: Sequence[Prepared], laid: Sequence[Layout]) -> int:
        """Return the bytes that a step of the members keeps beside the base."""
        total = 0
        for member, layout in zip(members, laid, strict=True):
            per_token, trained = self._of(member.config)
            total += _NUMBERS * trained + per_token * _places(member, layout)
        return total

    def _of(self, config: PeftConfig) -> tuple[int, int]:
        """Return the bytes kept for a token, and those of the trained numbers."""
        key = json.dumps(config.to_dict(), sort_keys=True, default=str)
        if key not in self._found:
            slot = Slot(self._base, config, seed=0)
            with slot.mounted() as model:
                model.train()
                if self._bf16:
                    leave_casts(slot.layers.values(), self._base.device)
                trained = sum(p.numel() * p.element_size() for p in slot.parameters().values())
                self._found[key] = kept_bytes(model, autocast=self._bf16), trained
        return self._found[key]


def _places(member: Prepared, layout: Layout) -> int:
    """Return the places of a member's largest batch, of some of them."""
    lengths, batches = member.plan.examples.lengths, member.plan.batches
    sample = batches[:: max(1, len(batches) // _SAMPLE)]
    return max(layout.places([int(lengths[i]) for i in batch]) for batch in sample)
