"""How the gradients of a batch are computed: eagerly, with compiled layers, or replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from cme_bench.adapters.routing.balance import BalanceTape

_WARM_UP = 3
"""Passes before a graph is captured, as torch asks."""


class Eager:
    """Computes each batch as it comes. ``tape``: of the balance loss, which is a mean over the batches of a
    step."""

    def __init__(self, model: PeftModel, tape: BalanceTape | None, *, bf16: bool, accumulate: int) -> None:
        self._model, self._tape = model, tape
        self._bf16, self._accumulate = bf16, accumulate

    def __call__(self, batch: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Add the gradients of a batch; return its summed loss and its balance loss, [2]."""
        device = batch["input_ids"].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._bf16):
            output: Any = self._model(**batch, weight=weight)
        loss = output.loss
        balance = torch.zeros((), device=loss.device)
        if self._tape is not None:
            balance = self._tape.loss(mask=batch["attention_mask"])
            loss = loss + balance / self._accumulate
        loss.backward()
        return torch.stack([output.nll, balance.detach()])


class Replayed:
    """Captures a CUDA graph of ``eager`` for every shape of batch, and replays it.

    A graph reads and writes the same memory each time: batches are copied into those of the capture.
    Gradients must have theirs, and are zero when a step begins.
    """

    def __init__(self, eager: Eager, grads: Tensor) -> None:
        self._eager, self._grads = eager, grads
        self._captured: dict[Any, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor, Tensor]] = {}
        self._pool: Any = None

    def __call__(self, batch: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Add the gradients of a batch; return its summed loss and its balance loss, [2]."""
        shapes = tuple((name, tuple(value.shape)) for name, value in batch.items())
        if shapes not in self._captured:
            self._captured[shapes] = self._capture(batch, weight)
        graph, held, held_weight, sums = self._captured[shapes]
        for name, value in batch.items():
            held[name].copy_(value)
        held_weight.copy_(weight)
        graph.replay()
        return sums.clone()

    def _capture(self, batch: Mapping[str, Tensor], weight: Tensor) -> tuple[Any, ...]:
        held = {name: value.clone() for name, value in batch.items()}
        held_weight = weight.clone()
        grads, random = self._grads.clone(), torch.cuda.get_rng_state()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._eager(held, held_weight)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            sums = self._eager(held, held_weight)
        self._pool = graph.pool()
        self._grads.copy_(grads)
        torch.cuda.set_rng_state(random)
        return graph, held, held_weight, sums


def compile_layers(model: PeftModel) -> None:
    """Let torch compile each decoder layer; layers of one kind share what is compiled."""
    base: Any = model.get_base_model()
    for layer in base.base_model.layers:
        layer.compile(dynamic=False)
