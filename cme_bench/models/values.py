"""Whether the weights of a model are numbers."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from cme_bench.models.weights import weight_files
from cme_bench.util.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def check_values(model: nn.Module, place: object) -> None:
    """Raise UsageError, naming ``place`` and the first weight, if one holds NaN or an infinity.

    One pass over the weights, and one wait for each device. Packed weights, and those left on disk, are not
    looked at.
    """
    import torch

    seen: dict[torch.device, list[tuple[str, Tensor]]] = defaultdict(list)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if _is_plain(weight):
                seen[weight.device].append((name, torch.stack(torch.aminmax(weight)).isfinite().all()))
    for found in seen.values():
        finite = torch.stack([flag for _, flag in found]).tolist()
        for (name, _), fine in zip(found, finite, strict=True):
            if not fine:
                raise UsageError(f"{place}: {name} holds NaN or infinite values")


def check_stored(folder: Path) -> None:
    """Raise UsageError, naming the folder and the first tensor, if a weight in its files holds NaN or an
    infinity. Reads all of them."""
    import torch
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                weight = stored.get_tensor(name)
                if _is_plain(weight) and not torch.stack(torch.aminmax(weight)).isfinite().all():
                    raise UsageError(f"{folder}: {name} holds NaN or infinite values")


def _is_plain(weight: Tensor) -> bool:
    import torch

    plain = type(weight.data) is torch.Tensor and weight.device.type != "meta"
    return plain and weight.is_floating_point() and weight.itemsize > 1 and weight.numel() > 0
