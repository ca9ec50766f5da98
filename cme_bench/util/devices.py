"""Where the parts of a model compute, of which accelerate spreads several over devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_spread(model: nn.Module) -> bool:
    """Return whether accelerate moves tensors between the devices of a model's parts."""
    places = set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    return len(places) > 1 or "disk" in places


def computing_device(module: nn.Module) -> torch.device:
    """Return where a module computes; that is not where its weights lie if they are on the host or on disk.

    Raises StopIteration for a module without weights.
    """
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        if (device := getattr(each, "execution_device", None)) is not None:
            return torch.device(device)
    tensor = next(t for t in (*module.parameters(), *module.buffers()))
    return tensor.device


def devices_of(model: nn.Module) -> list[str]:
    """Return the devices on which parts of a model lie, in the order of its modules; "disk" among them."""
    spread: Mapping[str, Any] = getattr(model, "hf_device_map", None) or {}
    return list(dict.fromkeys(f"cuda:{d}" if isinstance(d, int) else str(d) for d in spread.values()))


def moved(model: Any, device: torch.device) -> Any:
    """Return ``model`` on ``device``; one that is quantised or spread over devices stays where it is."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if is_spread(base) or getattr(base, "hf_quantizer", None) is not None:
        return model
    return model.to(device)


def sent(numbers: Any, device: torch.device) -> Tensor:
    """Return numbers on a device, float32. A GPU's copy from ordinary memory would wait for all its work."""
    tensor = torch.tensor(numbers, dtype=torch.float32)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Fetched:
    """A tensor's numbers on their way to the processor, which need not wait for the work before them."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._numbers = tensor
        if tensor.is_cuda:
            self._numbers = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._numbers.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def arrived(self) -> bool:
        """Return whether they are there."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def numbers(self) -> Tensor:
        """Wait for them, and return them."""
        if self._event is not None:
            self._event.synchronize()
        return self._numbers
