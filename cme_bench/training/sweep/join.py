"""The batches of many adapters below each other, as one batch of the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cme_bench.training.batches import IGNORED, Layout

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Joined:
    """Batches of adapters below each other: adapter i has ``sizes[i]`` rows, of ``widths[i]`` tokens at most.

    ``tensors``: as the batches have them, [all rows, length]. Packs of a fixed width have besides ``places``
    and ``targets``, [adapters, n], places of the flattened rows; and ``starts``.
    """

    tensors: dict[str, Tensor]
    sizes: list[int]
    widths: list[int]

    @classmethod
    def of_packs(cls, tensors: dict[str, Tensor], adapters: int) -> Joined:
        """Return the packs of so many adapters, which have as many each."""
        rows, width = tensors["input_ids"].shape
        return cls(tensors, [rows // adapters] * adapters, [width] * adapters)

    def counts(self) -> tuple[Tensor, Tensor]:
        """Return the target tokens and the tokens of each adapter's batch, [adapters]."""
        labels, masks = (torch.split(self.tensors[key], self.sizes) for key in ("labels", "attention_mask"))
        return torch.stack([(own != IGNORED).sum() for own in labels]), torch.stack([m.sum() for m in masks])

    def to(self, device: torch.device) -> Joined:
        """Return the same on a device."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self.tensors.items()}
        return Joined(moved, self.sizes, self.widths)

    def pinned(self) -> Joined:
        """Return the same in memory that a GPU reads while the processor goes on."""
        return Joined({k: v.pin_memory() for k, v in self.tensors.items()}, self.sizes, self.widths)


def join(batches: Sequence[Batch]) -> Joined:
    """Return batches as wide as the widest; examples are packed in all or in none."""
    width = max(batch["input_ids"].shape[1] for batch in batches)
    tensors = {
        key: torch.cat([_widened(b[key], width, IGNORED if key == "labels" else 0) for b in batches])
        for key in batches[0]
    }
    shapes = [batch["input_ids"].shape for batch in batches]
    return Joined(tensors, [rows for rows, _ in shapes], [columns for _, columns in shapes])


def _widened(rows: Tensor, width: int, value: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=value)


def join_packs(layouts: Sequence[Layout], examples: Sequence[Sequence[dict[str, Any]]]) -> Joined:
    """Return the packs of batches of examples, as many for each as the one with the most needs.

    ``layouts``: of each adapter, all of one width; the rows that one does not need are padding.
    """
    packs = [layout.packs(own) for layout, own in zip(layouts, examples, strict=True)]
    rows = max(map(len, packs))
    batches = [
        layout.packed(own, [*filled, *[[]] * (rows - len(filled))])
        for layout, own, filled in zip(layouts, examples, packs, strict=True)
    ]
    span = batches[0]["input_ids"].numel()
    learnt = max(batch["places"].numel() for batch in batches)
    tensors = {
        key: torch.cat([batch[key] for batch in batches])
        for key in ("input_ids", "attention_mask", "labels", "position_ids")
    }
    tensors["places"] = torch.stack(
        [_lengthened(b["places"] + i * span, learnt, i * span) for i, b in enumerate(batches)]
    )
    tensors["targets"] = torch.stack([_lengthened(b["targets"], learnt, IGNORED) for b in batches])
    starts = [batch["starts"][:-1] + i * span for i, batch in enumerate(batches)]
    tensors["starts"] = torch.cat([*starts, starts[0].new_tensor([len(batches) * span])])
    return Joined.of_packs(tensors, len(batches))


def _lengthened(numbers: Tensor, length: int, value: int) -> Tensor:
    return torch.nn.functional.pad(numbers, (0, length - len(numbers)), value=value)
