"""Kernels of one's own: used where they can be built and compute what they should."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from cme_bench.util.early import Early
from cme_bench.util.errors import first_line
from cme_bench.util.precision import full_float32

_one = threading.Lock()


def compute(right: Callable[[], bool], otherwise: str) -> bool:
    """Return whether kernels compute what is ``right``, which compares them with plain operations.

    Triton needs a C compiler, and knows not every card. Where they fail, ``otherwise`` is warned of. The
    comparison can take gradients and has all digits of float32, whatever mode the caller is in.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad(), full_float32():
            wrong = None if right() else "they compute something else"
    except Exception as error:  # Triton's are of many kinds, and none is worth a training
        wrong = f"{type(error).__name__}: {first_line(error)}"
    if wrong:
        warnings.warn(f"{otherwise} ({wrong})", stacklevel=3)
    return wrong is None


def tried(right: Callable[[], bool], otherwise: str) -> Early[bool]:
    """Begin to find what ``compute`` returns: who wants it meanwhile waits for the one trial."""

    def named_and_right() -> bool:
        know_triton()
        return right()

    return Early(lambda: compute(named_and_right, otherwise))


def know_triton() -> None:
    """Let Triton hash itself, for the names of what it builds, in one thread: half a second, which it takes
    in every thread that builds before the first has finished."""
    with _one, contextlib.suppress(ImportError):
        from triton.runtime.cache import triton_key

        triton_key()


def drawn(shapes: Iterable[Sequence[int]]) -> list[Tensor]:
    """Return normally distributed numbers of these shapes for a trial, the same at every call.

    They are float32, whatever torch's usual type is now: weights that load beside change it.
    """
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float32) for shape in shapes]


def launched_on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which Triton launches on a tensor's device.

    With one GPU there is nothing to switch, and a switch takes Python as long as many a kernel takes the GPU.
    """
    if _one_gpu():
        return contextlib.nullcontext()
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


@functools.cache
def _one_gpu() -> bool:
    return torch.cuda.device_count() == 1
