"""Numbers that are cheap to compare and cover all that a loaded model computes with: has an adapter left it
as it was?

Every tensor counts by name, shape, dtype, a checksum of its bits, and which other names share its memory
(the scales of quantised weights too);
every module by its class, its hooks and a forward of its own; and the configuration. It is one pass over the
weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from cme_bench.models.packed import companion_tensors, inner_tensors

Fingerprint: TypeAlias = Mapping[str, object]
"""Value by what it belongs to, as ``tensor model.norm.weight``."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def fingerprint(model: nn.Module) -> Fingerprint:
    """Return the fingerprint of ``model``; two are equal if the same tensors go through the same modules."""
    facts: dict[str, object] = {}
    sums = _Sums()
    seen: dict[tuple[object, ...], tuple[int, list[int]]] = {}
    for name, tensor in _tensors(model):
        placed = tensor.device.type != "meta" and not inner_tensors(tensor)
        where = (tensor.device, tensor.data_ptr() if placed else name, tensor.shape)
        if where not in seen:
            seen[where] = len(seen), sums.of(tensor)
        facts[f"tensor {name}"] = (tuple(tensor.shape), tensor.dtype, *seen[where])
    for name, module in model.named_modules():
        for part, tensor in companion_tensors(module):
            facts[f"tensor {name}.{part}"] = (tuple(tensor.shape), tensor.dtype, sums.of(tensor))
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        facts[f"module {name}"] = (type(module), hooks, module.__dict__.get("forward"))
    config = getattr(model, "config", None)
    facts["config"] = config.to_json_string(use_diff=False) if config is not None else None
    sums.read()
    return facts


def difference(before: Fingerprint, after: Fingerprint) -> str | None:
    """Return what differs first, tensors before modules; None if nothing does."""
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after or before[name] != after[name]:
            return name
    return None


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


class _Sums:
    """The sums of tensors, read from each device at once."""

    def __init__(self) -> None:
        self._waiting: dict[torch.device, list[tuple[list[int], Tensor]]] = defaultdict(list)

    def of(self, tensor: Tensor) -> list[int]:
        """Return a list that ``read`` fills with two int64: the sum of the bits as integers, and the same
        with every row weighted by its place. Nothing for a tensor without memory."""
        found: list[int] = []
        for part in _plain_parts(tensor):
            if part.device.type != "meta" and part.numel():
                self._waiting[part.device].append((found, _checksum(part)))
        return found

    def read(self) -> None:
        """Wait for the devices."""
        for waiting in self._waiting.values():
            numbers = torch.stack([sums for _, sums in waiting]).tolist()
            for (found, _), two in zip(waiting, numbers, strict=True):
                found.extend(two)


def _plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    parts = inner_tensors(tensor)
    for _, part in parts:
        yield from _plain_parts(part)
    if not parts:
        yield tensor


def _checksum(tensor: Tensor) -> Tensor:
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    bits = values.detach().contiguous().view(_INTEGERS[values.element_size()])
    rows = bits.reshape(-1, bits.shape[-1] if bits.dim() else 1).sum(-1, dtype=torch.int64)
    weights = 2 * torch.arange(len(rows), device=rows.device) + 1
    return torch.stack((rows.sum(), (rows * weights).sum()))
