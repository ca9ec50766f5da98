"""A function of tensors, replayed as a CUDA graph: a GPU is told once what a small model does in a step.

A step of a small model is thousands of kernels of a few microseconds, and telling each takes longer. A graph
reads and writes the same memory each time; what changes between calls is copied into its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cme_bench.training.memory import free_bytes, gib
from cme_bench.util.cuda_graph import captured
from cme_bench.util.errors import first_line

_COPIES = 2
"""A graph keeps the memory of a run, and inputs of another shape need it once more."""
Run = Callable[[Mapping[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    weight: Tensor
    output: Tensor


class Replay:
    """Computes ``run`` as it is when inputs come in new shapes, and as a CUDA graph from the second time on.

    ``run`` maps tensors by name, and a weight, to a tensor. It must not wait for the GPU, nor keep anything
    of a call but in memory that stays where it is, as gradients that are set. Where it cannot be captured it
    stays as it is, and ``note`` is told once. Random numbers go on from call to call if they are torch's own.
    """

    def __init__(self, run: Run, note: Callable[[str], None]) -> None:
        self._run, self._note = run, note
        self._captured: dict[Any, _Captured | None] = {}
        self._pool: Any = None
        self._gave_up = False
        self._needed = 0

    def __call__(self, inputs: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Return what ``run`` does."""
        shapes = tuple((name, tuple(value.shape)) for name, value in inputs.items())
        if self._gave_up:
            return self._run(inputs, weight)
        if shapes not in self._captured:
            self._captured[shapes] = None
            return self._measured(inputs, weight)
        held = self._captured[shapes] or self._capture(inputs, weight)
        if held is None:
            return self._run(inputs, weight)
        self._captured[shapes] = held
        for name, value in inputs.items():
            held.inputs[name].copy_(value)
        held.weight.copy_(weight)
        held.graph.replay()
        return held.output.clone()

    def _measured(self, inputs: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Run, and see what memory that takes for a while."""
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        output = self._run(inputs, weight)
        self._needed = max(self._needed, torch.cuda.max_memory_allocated() - before)
        return output

    def _give_up(self, reason: str) -> None:
        self._gave_up = True
        self._note(f"note: steps are not replayed as a CUDA graph ({reason})")

    def _capture(self, inputs: Mapping[str, Tensor], weight: Tensor) -> _Captured | None:
        """Return the graph for inputs of these shapes; None if there can be none."""
        free = free_bytes(torch.device("cuda", torch.cuda.current_device())) or 0
        if self._pool is None and free < _COPIES * self._needed:
            self._give_up(f"it would keep {gib(self._needed)}, of {gib(free)} that are free")
            return None
        held, own = {name: value.clone() for name, value in inputs.items()}, weight.clone()
        try:
            graph, output = captured(
                lambda: self._run(held, own), self._pool, stream=torch.cuda.current_stream()
            )
        except RuntimeError as error:
            self._give_up(first_line(error))
            return None
        self._pool = graph.pool()
        return _Captured(graph, held, own, output)


def static_shapes(modules: Iterable[nn.Module]) -> bool:
    """Return whether the shapes of what modules compute hang on their inputs' shapes alone.

    A layer that picks tokens for experts says so by ``static_shapes = False``.
    """
    return all(getattr(module, "static_shapes", True) for module in modules)


@contextmanager
def replaying(device: torch.device) -> Iterator[None]:
    """Work in the block on a stream of its own, as graphs are captured on; on a CPU nothing changes.

    A node that adds to a gradient works on the stream on which its parameter was first used: all uses of a
    model with gradients belong into the block.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
