"""A function of tensors, replayed as a CUDA graph: a GPU is told once what a small model does in a step.

A step of a small model is thousands of kernels of a few microseconds, and telling each takes longer. A graph
reads and writes the same memory each time; what changes between calls is copied into its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    output: Tensor


class Replay:
    """Computes ``run`` as it is when inputs come in new shapes, and as a CUDA graph from the second time on.

    ``run`` must not wait for the GPU, nor keep anything of a call but in memory that stays where it is, as
    gradients that are set. Where it cannot be captured it stays as it is, and ``note`` is told once.

    Args:
        run: Maps tensors by name to a tensor.
        note: Told why nothing is replayed.
        generators: Of random numbers that ``run`` draws, beside torch's own.
    """

    def __init__(
        self, run: Run, note: Callable[[str], None], *, generators: Sequence[torch.Generator] = ()
    ) -> None:
        self._run, self._note, self._generators = run, note, tuple(generators)
        self._captured: dict[Any, _Captured | None] = {}
        self._pool: Any = None
        self._gave_up = False

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what ``run`` does."""
        shapes = tuple((name, tuple(value.shape)) for name, value in inputs.items())
        if self._gave_up or shapes not in self._captured:
            self._captured[shapes] = None
            return self._run(inputs)
        held = self._captured[shapes] or self._capture(inputs)
        if held is None:
            return self._run(inputs)
        self._captured[shapes] = held
        for name, value in inputs.items():
            held.inputs[name].copy_(value)
        held.graph.replay()
        return held.output.clone()

    def _capture(self, inputs: Mapping[str, Tensor]) -> _Captured | None:
        """Return the graph for inputs of these shapes; None if there can be none."""
        held = {name: value.clone() for name, value in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=torch.cuda.current_stream(),
                capture_error_mode="thread_local",
            ):
                output = self._run(held)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._gave_up = True
            self._release_generators(next(iter(held.values())).device)
            first = str(error).strip().partition("\n")[0]
            self._note(f"note: steps are not replayed as a CUDA graph ({first})")
            return None
        self._pool = graph.pool()
        return _Captured(graph, held, output)

    def _release_generators(self, device: torch.device) -> None:
        """Let generators draw again that a capture which failed has left waiting for its end."""
        for generator in (torch.cuda.default_generators[device.index or 0], *self._generators):
            generator.graphsafe_set_state(generator.clone_state())


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
