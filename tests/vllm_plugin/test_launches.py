"""Launches that are kept: the same arguments reach CUDA as in Triton's own, and nothing is kept wrongly.

The kernels themselves are compared on a GPU (test_kernels). Here Triton's driver and its compiled kernels are
stand-ins, which write down what they get.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from triton import knobs
from triton.runtime import JITFunction, driver

from cme_bench.vllm_plugin import launches
from cme_bench.vllm_plugin.launches import Launch


class CudaLauncher:
    """What a compiled kernel is run by; ``launch`` stands for Triton's function in C."""

    global_scratch_size = profile_scratch_size = 0
    launch_cooperative_grid, launch_pdl = False, True

    def __init__(self) -> None:
        self.launched: list[tuple[Any, ...]] = []

    def launch(self, *values: Any) -> None:
        self.launched.append(values)


class Kernel(JITFunction):  # type: ignore[misc]  # triton carries no types here
    """A kernel with parameters as ours: two tensors, tokens, an integer, a float, two constants."""

    def __init__(self) -> None:
        self.arg_names = ["x", "out", "tokens", "stride", "scale", "RANK", "BLOCK_T"]
        self.pre_run_hooks: list[Any] = []
        self.by_triton: list[tuple[Any, ...]] = []
        self.runner = CudaLauncher()

    def __hash__(self) -> int:
        return id(self)

    def run(self, *values: Any, grid: tuple[int, int], warmup: bool, **constants: Any) -> Any:
        self.by_triton.append((grid, values, constants))
        return SimpleNamespace(run=self.runner, function=77, packed_metadata=(4, 1, 0))


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Stand in for a CUDA device, and keep launches whatever Triton is installed."""
    active = SimpleNamespace(index=0)
    active.get_current_device = lambda: active.index
    active.get_current_stream = lambda index: 100 + index
    before = launches.are_kept()
    monkeypatch.setattr(type(driver), "active", active)
    launches.keep(True)
    yield active
    launches.keep(before)


def tensors() -> tuple[Tensor, Tensor]:
    return torch.zeros(64), torch.zeros(64)


def started(kernel: Kernel) -> tuple[int, int]:
    """How many launches were Triton's, and how many were kept ones."""
    return len(kernel.by_triton), len(kernel.runner.launched)


def test_the_second_launch_hands_on_what_triton_would() -> None:
    kernel = Kernel()
    launch = Launch(kernel, 4, BLOCK_T=16, RANK=32)
    x, out = tensors()
    launch((3, 2), (x, out), 9, 576, 2.0)
    launch((5, 1), (out, x), 7, 576, 2.0)
    assert kernel.by_triton == [((3, 2), (x, out, 9, 576, 2.0), {"BLOCK_T": 16, "RANK": 32, "num_warps": 4})]
    pointers = (out.data_ptr(), x.data_ptr())
    before = (5, 1, 1, 100, 77, False, True, None, None, (4, 1, 0), None, None, None)
    assert kernel.runner.launched == [(*before, *pointers, 7, 576, 2.0, 32, 16)]


def test_what_triton_compiles_anew_is_not_taken_for_the_same(device: SimpleNamespace) -> None:
    kernel = Kernel()
    launch = Launch(kernel, 4, RANK=32, BLOCK_T=16)
    x, out = tensors()
    launch((1, 1), (x, out), 9, 576, 2.0)
    launch((1, 1), (x, out), 9, 577, 2.0)
    launch((1, 1), (x.bfloat16(), out), 9, 576, 2.0)
    device.index = 1
    launch((1, 1), (x, out), 9, 576, 2.0)
    assert started(kernel) == (4, 0)
    launch((1, 1), (x, out), 9, 576, 2.0)
    assert started(kernel) == (4, 1)
    assert kernel.runner.launched[0][3] == 101


def test_a_pointer_that_is_not_aligned_is_triton_s_and_never_kept() -> None:
    kernel = Kernel()
    launch = Launch(kernel, 4, RANK=32, BLOCK_T=16)
    x, out = tensors()
    odd = torch.zeros(65)[1:]
    for pair in ((odd, out), (x, odd), (x, out), (odd, out)):
        launch((1, 1), pair, 9, 576, 2.0)
    assert started(kernel) == (4, 0)
    launch((1, 1), (x, out), 9, 576, 2.0)
    assert started(kernel) == (4, 1)


def test_hooks_and_the_switch_leave_launches_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    launch = Launch(kernel, 4, RANK=32, BLOCK_T=16)

    def both() -> tuple[int, int]:
        launch((1, 1), tensors(), 9, 576, 2.0)
        return started(kernel)

    both()
    for hook in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        monkeypatch.setattr(hook, "calls", [print])
        assert both()[1] == 0
        monkeypatch.setattr(hook, "calls", [])
    launches.keep(False)
    assert both() == (4, 0)
    launches.keep(True)
    assert both() == (4, 1)


@pytest.mark.parametrize("change", ["scratch", "profile", "launcher", "hook", "interpreted"])
def test_a_launch_that_needs_more_than_we_know_is_not_kept(change: str) -> None:
    kernel: Any = Kernel()
    if change == "scratch":
        kernel.runner.global_scratch_size = 128
    elif change == "profile":
        kernel.runner.profile_scratch_size = 128
    elif change == "launcher":
        kernel.runner = SimpleNamespace(launch=None, global_scratch_size=0, profile_scratch_size=0)
    elif change == "hook":
        kernel.pre_run_hooks.append(print)
    run = kernel
    if change == "interpreted":
        run = {(1, 1): lambda *values, **constants: kernel.run(*values, grid=(1, 1), warmup=False)}
    launch = Launch(run, 4, RANK=32, BLOCK_T=16)
    for _ in range(3):
        launch((1, 1), tensors(), 9, 576, 2.0)
    assert len(kernel.by_triton) == 3


def test_a_kernel_without_known_launcher_reads_nothing_of_the_device(device: SimpleNamespace) -> None:
    """The interpreter runs where there is no driver."""
    device.get_current_device = None
    called: list[Any] = []
    run = {(1, 1): lambda *values, **constants: called.append(values)}
    Launch(run, 4)((1, 1), tensors(), 9)
    assert len(called) == 1
