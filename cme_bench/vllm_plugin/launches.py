"""Launches of a Triton kernel without what Triton does before each: to bind, to specialise, to look up.

That takes some 15 us of Python a launch, and four times as much on a slow host: more than the launch itself.
The first launch for some integers is Triton's own, which compiles the kernel. What that hands to CUDA is
kept, and handed to it again where all is the same that Triton compiles a kernel for: the device, the tensors'
dtypes, the integers, and pointers that are multiples of 16 bytes. Elsewhere every launch is Triton's own:
with another release of it, with hooks, with the interpreter, and with ``CME_BENCH_VLLM_LAUNCHES=0``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import reduce
from operator import attrgetter, or_
from typing import Any

import triton
from torch import Tensor
from triton import knobs
from triton.runtime import JITFunction, driver

SWITCH = "CME_BENCH_VLLM_LAUNCHES"
"""Environment variable: 0 leaves every launch to Triton."""
RELEASES = ("3.6.",)
"""Triton's releases of which it is known what a compiled kernel is launched with."""
ALIGNED = 16
"""Bytes. Triton compiles a kernel anew where a pointer is no multiple."""

_dtype = attrgetter("dtype")
_turned_on = os.environ.get(SWITCH, "1") != "0" and triton.__version__.startswith(RELEASES)


def are_kept() -> bool:
    """Tell whether launches may be kept."""
    return _turned_on


def keep(on: bool) -> None:
    """Turn keeping on or off, for launches that are kept already, too."""
    global _turned_on  # noqa: PLW0603 - one switch for all kernels
    _turned_on = on


class Launch:
    """A kernel with what it is compiled for: ``constants`` by name, and the warps of a program.

    The kernel's parameters are tensors first, then the number of tokens, for which nothing is compiled anew,
    then integers and floats, each of one type in every launch, and at last the constants.
    """

    def __init__(self, kernel: Any, warps: int, **constants: Any) -> None:
        self._kernel = kernel
        self._constants = {**constants, "num_warps": warps}
        self._can_keep = isinstance(kernel, JITFunction)  # else it is interpreted
        self._kept: dict[Any, tuple[Callable[..., None], tuple[Any, ...], tuple[Any, ...], Any]] = {}

    def __call__(
        self, grid: tuple[int, int], tensors: tuple[Tensor, ...], tokens: int, *numbers: float
    ) -> None:
        """Launch ``grid`` programs on the current device and stream."""
        hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        if not (_turned_on and self._can_keep) or hooks[0].calls or hooks[1].calls:
            self._by_triton(grid, tensors, tokens, numbers)
            return
        active = driver.active
        device = active.get_current_device()
        pointers = [*map(Tensor.data_ptr, tensors)]
        key = (device, numbers, *map(_dtype, tensors))
        kept = self._kept.get(key)
        if reduce(or_, pointers) % ALIGNED:
            self._by_triton(grid, tensors, tokens, numbers)
        elif kept is None:
            compiled = self._by_triton(grid, tensors, tokens, numbers)
            self._keep(key, compiled, numbers)
        else:
            launch, before, after, _ = kept
            stream = active.get_current_stream(device)
            launch(grid[0], grid[1], 1, stream, *before, *pointers, tokens, *after)

    def _by_triton(
        self, grid: tuple[int, int], tensors: tuple[Tensor, ...], tokens: int, numbers: tuple[float, ...]
    ) -> Any:
        return self._kernel[grid](*tensors, tokens, *numbers, **self._constants)

    def _keep(self, key: Any, compiled: Any, numbers: tuple[float, ...]) -> None:
        """Keep what ``CudaLauncher`` hands to CUDA, if it hands on no more than this launch has."""
        run: Any = getattr(compiled, "run", None)
        if type(run).__name__ != "CudaLauncher" or self._kernel.pre_run_hooks:
            return
        if run.global_scratch_size or run.profile_scratch_size:  # memory that is made for each launch
            return
        names = self._kernel.arg_names
        constants = [self._constants[name] for name in names if name in self._constants]
        before = (
            compiled.function, run.launch_cooperative_grid, run.launch_pdl, None, None,
            compiled.packed_metadata, None, None, None,
        )  # fmt: skip
        self._kept[key] = run.launch, before, (*numbers, *constants), compiled
