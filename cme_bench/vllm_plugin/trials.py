"""Kernels tried on a small layer before they serve a model: what this GPU's Triton makes of them is right.

A kernel that does not compile here, or gives other numbers than PyTorch, is left out with a warning.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from cme_bench.vllm_plugin.reference import silu_and_mul
from cme_bench.vllm_plugin.slot_index import SlotIndex
from cme_bench.vllm_plugin.slot_reference import Stack, by_rows
from cme_bench.vllm_plugin.spec import GatedSpec

if TYPE_CHECKING:
    from cme_bench.vllm_plugin.kernels import Store

D_IN, HALF, N_SLOTS = 512, 128, 3
TOKENS = (40, 300, 1500, 4000)
"""From few to many, which take different tiles."""
SLOTTED = {40: HALF, 200: 4352, 300: HALF, 1500: HALF, 4000: HALF}
"""The same with slots, every plan's, each with half the output's columns; so many that programs do more than
one block."""
TOLERANCE = 2e-2
"""Relative error by norm, in 16 bits."""


def slots_work(room: GatedSpec, dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether the kernels of slots give what PyTorch does, for adapters in the form of ``room``."""
    return _works("several adapters in a batch", _slots_agree, replace(room, modules=("m",)), dtype, device)


def silu_works(spec: GatedSpec, dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether the kernel that computes silu(gate) * up, too, gives what PyTorch does after the other."""
    return _works("silu(gate) * up in one kernel", _silu_agrees, replace(spec, modules=("m",)), dtype, device)


def launches_work(spec: GatedSpec, dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether kernels whose launches are kept give what they do when Triton launches them; if not, every
    launch is Triton's from now on."""
    from cme_bench.vllm_plugin import launches

    works = _works("keeping launches", _launches_agree, replace(spec, modules=("m",)), dtype, device)
    if not works:
        launches.keep(False)
    return works


@functools.cache
def _works(
    name: str,
    agree: Callable[[GatedSpec, torch.dtype, torch.device], bool],
    spec: GatedSpec,
    dtype: torch.dtype,
    device: torch.device,
) -> bool:
    reason = "it gives other numbers than PyTorch"
    try:
        with torch.inference_mode():
            if agree(spec, dtype, device):
                return True
    except Exception as error:  # compilers raise anything
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[-1:]}"
    logging.getLogger("vllm.cme_bench").warning("cme_bench: %s is off on this GPU (%s)", name, reason)
    return False


def _slots_agree(room: GatedSpec, dtype: torch.dtype, device: torch.device) -> bool:
    return all(_slots_agree_at(tokens, half, room, dtype, device) for tokens, half in SLOTTED.items())


def _slots_agree_at(
    tokens: int, half: int, room: GatedSpec, dtype: torch.dtype, device: torch.device
) -> bool:
    from cme_bench.vllm_plugin.slot_kernels import Slotted

    spans = [(0, 0, half), (1, half, 2 * half)]
    stack = Stack.empty(N_SLOTS, D_IN, 2 * half, spans, room, dtype, dtype, device)
    for seed, name in enumerate(("down", "up", "router", "interaction")):
        place = getattr(stack, name)
        place.copy_(_random(tuple(place.shape), seed) * max(1, place.shape[-1]) ** -0.5)
    stack.settings.copy_(torch.tensor([[2.0, 0.0, float(room.experts)]], device="cpu").expand(N_SLOTS, 3))
    index = SlotIndex(tokens, N_SLOTS, device)
    index.set(np.random.default_rng(0).integers(0, N_SLOTS + 1, tokens).astype(np.int32))
    x, y = (_random((tokens, size), 9 + size).to(device, dtype) for size in (D_IN, 2 * half))
    layer, wanted = Slotted(stack, index, partial=False), by_rows(y, x, index.groups, stack)
    weight = (_random((2 * half, D_IN), tokens) * D_IN**-0.5).to(device, dtype)
    whole = silu_and_mul(by_rows(linear(x, weight), x, index.groups, stack))
    pairs = ((layer.updated(y, x), wanted), (layer.linear(x, weight, silu=True), whole))
    return all(_alike(found, right) for found, right in pairs)


def _silu_agrees(spec: GatedSpec, dtype: torch.dtype, device: torch.device) -> bool:
    store = _halves(spec, dtype, device)
    for tokens in TOKENS:
        x = _random((tokens, D_IN), 4).to(device, dtype)
        wanted = silu_and_mul(store.apply(x, "split"))
        if not all(_alike(store.apply(x, way, silu=True), wanted) for way in ("rows", "gated")):
            return False
    return True


def _launches_agree(spec: GatedSpec, dtype: torch.dtype, device: torch.device) -> bool:
    """Compare the first launch, which is kept, and one of fewer tokens, which is as that was."""
    from cme_bench.vllm_plugin import launches

    if not launches.are_kept():
        return True
    store, x = _halves(spec, dtype, device), _random((16, D_IN), 4).to(device, dtype)
    pairs = [(x[:tokens], way) for way in ("rows", "gated") for tokens in (16, 5)]
    found = [store.apply(*pair) for pair in pairs]
    launches.keep(False)
    wanted = [store.apply(*pair) for pair in pairs]
    launches.keep(True)
    return all(map(torch.equal, found, wanted))


def _halves(spec: GatedSpec, dtype: torch.dtype, device: torch.device) -> Store:
    """Return a small layer of two parts with an adapter."""
    from cme_bench.vllm_plugin.kernels import Store

    weight = (_random((2 * HALF, D_IN), 0) * D_IN**-0.5).to(device, dtype)
    store = Store.build(weight, [(0, 0, HALF), (1, HALF, 2 * HALF)], spec)
    routed = 2 * spec.experts if spec.routed else 0
    store.place(
        _random((2 * spec.latent, D_IN), 1) * D_IN**-0.5,
        _random((2 * HALF, spec.gated), 2) * spec.gated**-0.5,
        _random((routed, D_IN), 3) if routed else None,
        None,
    )
    return store


def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def _alike(found: Tensor, wanted: Tensor) -> bool:
    return bool((found.float() - wanted.float()).norm() < TOLERANCE * wanted.float().norm())
