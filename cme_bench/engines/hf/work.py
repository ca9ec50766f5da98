"""The least work of a forward, and how long a device took for it: what ``--engine-stats`` compares."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from cme_bench.engines.hf.forward import base_model


@dataclass(frozen=True, slots=True)
class Work:
    """Numbers that every token meets in products: in the ``body``, and in the output layer, ``head``.

    Attention itself is left out, so that ``flops`` is a floor.
    """

    body: int
    head: int

    @classmethod
    def of(cls, model: Any) -> Work:
        """Return the work of a model with its adapters; none where its weights are packed in integers."""
        base = base_model(model)
        embedding, output = base.get_input_embeddings(), base.get_output_embeddings()
        outside = {id(p) for part in (embedding, output) if part is not None for p in part.parameters()}
        inside = [p for p in model.parameters() if id(p) not in outside]
        if output is None or not all(p.is_floating_point() and p.element_size() > 1 for p in inside):
            return cls(0, 0)
        return cls(sum(p.numel() for p in inside if p.dim() > 1), sum(p.numel() for p in output.parameters()))

    def flops(self, tokens: int, scored: int) -> float:
        """Return the operations for ``tokens`` positions, of which ``scored`` have their logits computed."""
        return 2.0 * self.body * tokens + 2.0 * self.head * scored


class DeviceTimer:
    """Time from its making to ``stop`` on the device itself; elsewhere the host's time is the device's."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] = []
        self._device = device
        self._started = self._stopped = time.perf_counter()
        self._mark()

    def _mark(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # as torch has it
            self._events.append(event)
            event.record(torch.cuda.current_stream(self._device))

    def stop(self) -> None:
        """End the time."""
        self._stopped = time.perf_counter()
        self._mark()

    def seconds(self) -> float:
        """Return the time, once the device is there."""
        if not self._events:
            return self._stopped - self._started
        begin, end = self._events
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000
