"""Tiles of the expanding kernels for many tokens timed against each other: one layer, one adapter.

``vllm_kernels.py --tune loops --tokens N`` runs it. A layer's table has the microseconds of everything after
the product x [W0; A; S], fastest first: the kernel, and the one that gates the latent for the tiles that do
not. Of a layer of two halves silu(g) * u, else y + (omega z) B. What is printed of a tile is what
``SILU_OF_MANY`` and ``ADD_OF_MANY`` of ``expansion.py`` may hold. Each is first checked, element by element
and at a number of tokens that fits no tile, against float32 on the same product.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from slot_plans import CALLS, compiling, replayed, shown
from torch import Tensor
from torch.nn.functional import linear

from cme_bench.vllm_plugin import expansion
from cme_bench.vllm_plugin.expansion import MANY, Blocks, Loop, Widened
from cme_bench.vllm_plugin.reference import silu_and_mul
from cme_bench.vllm_plugin.triton_kernels import expand_add_kernel, expand_add_silu_kernel
from cme_bench.vllm_plugin.triton_loops import expand_add_loop, expand_add_silu_loop

FAVOURITE = Loop(128, 32, 8, 1, 2, 264)
GATING = replace(FAVOURITE, registers=128, gates=True)
SILUS: tuple[Blocks | Loop, ...] = (
    MANY,
    FAVOURITE,
    replace(FAVOURITE, programs=528),
    replace(FAVOURITE, programs=1056),
    replace(FAVOURITE, fast=False),
    GATING,
    replace(GATING, programs=528),
    Loop(128, 32, 8, 2, 1, 264, 128),
    Loop(128, 32, 8, 2, 1, 528, 128),
    Loop(128, 32, 8, 2, 1, 264, 128, gates=True),
    Loop(128, 32, 4, 2, 1, 264),
    Loop(128, 32, 8, 4, 0, 132),
    Loop(128, 64, 8, 1, 0, 264, 128),
    Loop(128, 64, 8, 1, 0, 528, 128),
    Loop(128, 64, 8, 3, 1, 132),
    Loop(128, 64, 16, 3, 1, 132),
    Loop(128, 64, 16, 1, 2, 132),
    Loop(128, 64, 16, 1, 2, 264),
    Loop(64, 32, 4, 1, 2, 528, 128),
    Loop(64, 64, 4, 1, 0, 792),
    Loop(64, 64, 4, 2, 1, 264),
    Loop(64, 64, 8, 2, 1, 264, 128),
    Loop(256, 32, 16, 1, 2, 132),
    Loop(256, 32, 16, 3, 1, 132),
    Loop(256, 32, 8, 3, 1, 132),
    Loop(256, 64, 16, 1, 0, 132),
)
ADDS = (
    GATING,
    replace(GATING, programs=528),
    replace(GATING, programs=1056),
    replace(FAVOURITE, programs=528),
    Loop(128, 64, 8, 1, 2, 264),
    Loop(128, 64, 8, 1, 2, 264, 128, gates=True),
    Loop(128, 64, 8, 1, 2, 528, 128, gates=True),
    Loop(128, 64, 8, 2, 1, 264, 128, gates=True),
    Loop(64, 64, 8, 1, 2, 792),
    Loop(64, 64, 8, 1, 2, 528, gates=True),
    Loop(64, 64, 4, 1, 2, 396, gates=True),
    Loop(64, 64, 4, 1, 2, 792, gates=True),
    Loop(64, 64, 4, 3, 0, 264, 128, gates=True),
)
KERNELS = (expand_add_kernel, expand_add_silu_kernel, expand_add_loop, expand_add_silu_loop)
CLOSE = 0.02
"""Most by which an element may differ, of itself and of one: three roundings to bfloat16 of one step each."""
Finish = Callable[[Widened], Tensor]


def finishes(store: Any) -> dict[str, Finish]:
    """Return what is compared, by name: ways from a layer's product to its result."""

    def silu(tile: Blocks | Loop) -> Finish:
        return lambda held: held.silu_of_many(tile)

    def add(tile: Loop) -> Finish:
        return lambda held: held.add_of_many(store.part_of_grain, tile)

    if store.has_halves:
        return {shown(tile): silu(tile) for tile in SILUS}
    blocks: dict[str, Finish] = {
        "tile of expand_blocks": lambda held: held.expand_add(store.part_of_grain),
        shown(MANY): lambda held: held.with_gates().expand_add(store.part_of_grain),
    }
    return blocks | {shown(tile): add(tile) for tile in ADDS}


def tune(
    title: str,
    store: Any,
    settings: expansion.Settings,
    x: Tensor,
    graph_of: Callable[[Callable[[Tensor], Tensor], Tensor, int], torch.cuda.CUDAGraph],
) -> bool:
    """Print the table of a layer and return whether every tile gives the right numbers."""
    import vllm._custom_ops  # noqa: F401 - registers silu_and_mul

    d_out, d_in = store.weight.shape
    silu: bool = store.has_halves

    def product(x: Tensor) -> Widened:
        ext = linear(x, store.matrix[:, :d_in])
        return Widened(ext, store.matrix, store.interaction, d_in, d_out, settings)

    def base(x: Tensor) -> Tensor:
        y = linear(x, plain)
        return activated(y) if silu else y

    def bound(finish: Finish) -> Callable[[Tensor], Tensor]:
        return lambda _: finish(held)

    held, odd, plain = product(x), product(x[: len(x) - 29]), store.weight.contiguous()
    compared = finishes(store)
    with compiling(KERNELS):
        for finish in compared.values():
            finish(held)
    right = {
        name: finish for name, finish in compared.items() if is_right(f"{title} {name}", odd, finish, silu)
    }
    pieces: dict[str, Callable[[Tensor], Tensor]] = {name: bound(finish) for name, finish in right.items()}
    pieces["gating alone"] = lambda _: held.with_gates().ext
    pieces["layer: base"] = base
    pieces["layer: as it is"] = lambda x: store.apply(x, silu=silu)
    if silu:
        y = linear(x, plain)
        pieces["silu and mul of y alone"] = lambda _: activated(y)
    graphs = {name: graph_of(run, x, CALLS) for name, run in pieces.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(7):
        for name, graph in graphs.items():
            times[name].append(replayed(graph))
    print(f"{title}, {len(x)} tokens")
    for us, name in sorted((statistics.median(found), name) for name, found in times.items()):
        print(f"  {us:9.1f}  {name}")
    sys.stdout.flush()
    return len(right) == len(compared)


def activated(y: Tensor) -> Tensor:
    """Return silu(g) * u by vLLM's kernel."""
    out = y.new_empty(len(y), y.shape[1] // 2)
    torch.ops._C.silu_and_mul(out, y)
    return out


def is_right(name: str, held: Widened, finish: Finish, silu: bool) -> bool:
    """Tell whether a result is near the exact one, and say so on stderr if not."""
    try:
        found = finish(held).float()
        torch.cuda.synchronize()
    except Exception as failure:  # a compiler raises anything
        print(f"  {name}: {type(failure).__name__}: {str(failure)[:200]}", file=sys.stderr)
        return False
    wanted = exact(held, silu)
    wrong = int((~((found - wanted).abs() <= CLOSE * (1 + wanted.abs()))).sum())
    if wrong:
        print(f"  {name}: WRONG in {wrong} of {wanted.numel()} elements", file=sys.stderr)
    return not wrong


def exact(held: Widened, silu: bool) -> Tensor:
    """Return the result in float32; g and u are rounded to the model's dtype before silu."""
    gated, settings = held.with_gates().gated, held.settings
    assert gated is not None
    y, size, width = held.ext[:, : held.d_out].float(), held.d_out // settings.parts, settings.width
    for part in range(settings.parts):
        rows, first = slice(part * size, (part + 1) * size), part * width
        up = held.matrix[rows, held.d_in + first : held.d_in + first + width]
        y[:, rows] += gated[:, first : first + width].float() @ up.float().T
    return silu_and_mul(y.to(held.ext.dtype).float()) if silu else y
