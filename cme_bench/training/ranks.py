"""The processes of one training, one device each, that ``accelerate launch`` or ``torchrun`` started.

What they tell each other is little: one array of gradients a step, and who wants to stop. One process alone
tells nothing, so the same code serves it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from cme_bench.util.errors import CmeError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """One of ``count`` processes, by its ``number`` from 0; ``local``: its number on its host.

    All processes must call each method that speaks to others, in one order. CmeError where one is gone.
    """

    number: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> Ranks:
        """Return what a launcher says of this process."""
        said = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        number, count, local = (int(value) if value else None for value in said)
        return cls(number or 0, count or 1, local or 0)

    def take_device(self) -> None:
        """Compute on the GPU that is this process's from now on, in this thread."""
        if self.count > 1 and torch.cuda.is_available():
            torch.cuda.set_device(self.local % torch.cuda.device_count())

    def join(self, device: torch.device) -> None:
        """Meet the other processes; they stay together until this process ends."""
        if self.count == 1:
            return
        from accelerate import PartialState

        with _within_reach(f"the {self.count} processes of this training cannot reach each other"):
            PartialState(cpu=device.type == "cpu")
        self.any(False, device)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether the flag of any process is set; each waits for all."""
        return bool(self.summed(torch.tensor(float(flag), device=device)).item()) if self.count > 1 else flag

    def summed(self, tensor: Tensor) -> Tensor:
        """Return the sum over the processes, in the place of the tensor."""
        if self.count > 1:
            with _within_reach():
                distributed.all_reduce(tensor)
        return tensor

    def spread(self, tensor: Tensor) -> None:
        """Give every process the first one's numbers."""
        if self.count > 1:
            with _within_reach():
                distributed.broadcast(tensor, src=0)

    def of_all(self, value: T) -> list[T]:
        """Return the values of all processes, by number."""
        if self.count == 1:
            return [value]
        found = [value] * self.count
        with _within_reach():
            distributed.all_gather_object(found, value)
        return found


def leave() -> None:
    """Part from the other processes, as one does before a process ends well."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def _within_reach(failed: str = "another process of this training is out of reach") -> Iterator[None]:
    """Say in one line that other processes cannot be spoken to; the last line of torch's tells why."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise CmeError(f"{failed} ({reason})") from error
