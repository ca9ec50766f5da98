"""The GPU kernels of routed layers in a sweep, built while rows are still being read.

Triton builds one for each number of experts and each rank, forward and backward: a second or two each on a
new machine, one after the other where layers call for them. Here threads build them side by side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from cme_bench.adapters.routing import gate_kernels
from cme_bench.adapters.routing.balance import BalanceTape
from cme_bench.adapters.routing.building import SIDE, is_routed, small_layer
from cme_bench.training.sweep.joint import add_joints, joint
from cme_bench.training.sweep.turn import Turn
from cme_bench.util.phases import phase

_TOKENS = 64
"""A multiple of 16, as those of packs are, for which Triton builds kernels of their own."""
_THREADS = 8


def build_kernels(
    configs: Sequence[PeftConfig], device: torch.device, *, bf16: bool, beside: Callable[[], None]
) -> None:
    """Build what steps of adapters with these configurations compute by, and do ``beside`` meanwhile.

    On a CPU there is nothing to do. A failure is left to the steps themselves, which can tell of it.
    """
    if device.type != "cuda":
        return
    device = torch.empty(0, device=device).device  # by its number, as tensors name it
    gate_kernels.drops(device)
    routed = [config for config in configs if is_routed(config)]
    if routed:
        gate_kernels.work(device)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="kernels") as pool:
        begun = [pool.submit(_attempt, beside)]
        begun += [pool.submit(_attempt, partial(rehearse, each, device, bf16=bf16)) for each in routed]
        wait(begun)
    torch.cuda.synchronize(device)


@phase("kernels")
def _attempt(work: Callable[[], object]) -> None:
    with suppress(Exception):
        work()


def rehearse(config: PeftConfig, device: torch.device, *, bf16: bool) -> bool:
    """Compute an adapter's update in a small linear layer of the base, and its gradients; return whether it
    is computed by kernels of ours.

    All numbers are zeros. On a CPU no random number of torch's own generator is drawn.
    """
    layer: Any = small_layer(config, device)
    if layer is None:
        return False
    dtype = torch.bfloat16 if bf16 else torch.float32
    linear = nn.Linear(SIDE, SIDE, bias=False, device="meta", dtype=dtype).to_empty(device=device)
    parameters = {
        name: parameter.detach()[None].requires_grad_()
        for name, parameter in layer.train().named_parameters()
        if not name.startswith("base_layer.")
    }
    tape = BalanceTape() if getattr(config, "balance_coefficient", 0.0) > 0 else None
    turn = Turn([torch.Generator(device)], [tape])
    turn.begin([1], [_TOKENS], torch.ones(1, _TOKENS, device=device))
    found = joint(range(1), layer, lambda: parameters, turn)
    if found is None:
        return False
    linear.requires_grad_(False).weight.zero_()
    x = torch.zeros(1, _TOKENS, SIDE, device=device, dtype=dtype, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        y = add_joints(x, linear, [found])
    total = y.float().sum()
    with torch.autograd.set_multithreading_enabled(False):  # else one thread of torch's builds for all
        torch.autograd.backward(total if tape is None else total + tape.loss())
    return True
