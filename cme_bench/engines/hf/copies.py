"""Copies between host and device that let the host go on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cme_bench.engines.packs import Ints


def to_device(numbers: Ints, device: torch.device) -> Tensor:
    """Return an array on the device. A copy from ordinary memory would wait for all work before it."""
    tensor = torch.from_numpy(numbers)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Start a copy to the host; return what waits for it, and for no work that is begun later."""
    if tensor.device.type != "cuda":
        return tensor.cpu
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    there.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch carries no types here
    done.record(torch.cuda.current_stream(tensor.device))

    def wait() -> Tensor:
        done.synchronize()
        return there

    return wait
