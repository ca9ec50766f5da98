"""Capturing work on a GPU as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cme_bench.util.collection import uncollected


def captured(
    run: Callable[[], Tensor], pool: Any, *, stream: torch.cuda.Stream | None = None
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Capture ``run`` on the current device, and return the graph and the tensor that replays write.

    Args:
        run: Must have run once before with inputs of the same shapes.
        pool: Memory that graphs share which never run at once; None for memory of its own.
        stream: On which to capture; by default one of torch's own.

    No garbage is collected meanwhile: memory that copies to the device used would be given back within the
    capture. Raises the first RuntimeError of a capture that fails, once torch can go on without it.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with (
            uncollected(),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            output = run()
    except RuntimeError as error:
        _release_generator()
        raise _first(error) from None
    return graph, output


def _first(error: RuntimeError) -> RuntimeError:
    """Return the first of the errors of a capture; the last says that there was one."""
    found: BaseException = error
    while found.__context__ is not None:
        found = found.__context__
    return found if isinstance(found, RuntimeError) else error


def _release_generator() -> None:
    """Let torch draw again after a capture that failed, whose end its generator waits for."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())
