"""Tiles of silu(g) * u for many tokens timed against each other: one layer of two halves, one adapter.

``vllm_kernels.py --tune silu --tokens N`` runs it. The table has the microseconds of everything after the
product x [W0; A; S], fastest first: the kernel, and the one that gates the latent for the tiles that do not.
What is printed of a tile is what ``expansion.SILU_OF_MANY`` may hold. Each is first checked, element by
element and at a number of tokens that fits no tile, against float32 on the same product.
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
from cme_bench.vllm_plugin.triton_kernels import expand_add_silu_kernel
from cme_bench.vllm_plugin.triton_silu_loop import expand_add_silu_loop

FAVOURITE = Loop(128, 32, 8, 1, 2, 264)
TILES: tuple[Blocks | Loop, ...] = (
    MANY,
    FAVOURITE,
    replace(FAVOURITE, programs=528),
    replace(FAVOURITE, programs=1056),
    replace(FAVOURITE, fast=False),
    replace(FAVOURITE, registers=128, gates=True),
    replace(FAVOURITE, registers=128, gates=True, programs=528),
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
    Loop(64, 64, 4, 1, 0, 396),
    Loop(64, 64, 4, 2, 1, 264),
    Loop(64, 64, 8, 2, 1, 264, 128),
    Loop(256, 32, 16, 1, 2, 132),
    Loop(256, 32, 16, 3, 1, 132),
    Loop(256, 32, 8, 3, 1, 132),
    Loop(256, 64, 16, 1, 0, 132),
)
CLOSE = 0.02
"""Most by which an element may differ, of itself and of one: three roundings to bfloat16 of one step each."""


def tune(  # noqa: PLR0917
    title: str,
    store: Any,
    settings: expansion.Settings,
    x: Tensor,
    graph_of: Callable[[Callable[[Tensor], Tensor], Tensor, int], torch.cuda.CUDAGraph],
    rounds: int = 7,
) -> bool:
    """Print the table of a layer and return whether every tile gives the right numbers."""
    import vllm._custom_ops  # noqa: F401 - registers silu_and_mul

    d_out, d_in = store.weight.shape

    def product(x: Tensor) -> Widened:
        ext = linear(x, store.matrix[:, :d_in])
        return Widened(ext, store.matrix, store.interaction, d_in, d_out, settings)

    held, odd, plain = product(x), product(x[: len(x) - 29]), store.weight.contiguous()
    with compiling((expand_add_silu_loop, expand_add_silu_kernel)):
        for tile in TILES:
            held.silu_of_many(tile)
    y = linear(x, plain)

    def alone(tile: Blocks | Loop) -> Callable[[Tensor], Tensor]:
        return lambda _: held.silu_of_many(tile)

    def layer(tile: Blocks | Loop) -> Callable[[Tensor], Tensor]:
        return lambda x: product(x).silu_of_many(tile)

    right = [tile for tile in TILES if is_right(title, odd, tile)]
    pieces = {
        "silu and mul of y alone": lambda _: activated(y),
        "gating alone": lambda _: held.with_gates().ext,
        "base: product, silu and mul": lambda x: activated(linear(x, plain)),
    }
    pieces |= {shown(tile): alone(tile) for tile in right}
    pieces |= {f"layer: product, {shown(tile)}": layer(tile) for tile in (MANY, FAVOURITE) if tile in right}
    graphs = {name: graph_of(run, x, CALLS) for name, run in pieces.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            times[name].append(replayed(graph))
    print(f"{title}, {len(x)} tokens")
    for us, name in sorted((statistics.median(found), name) for name, found in times.items()):
        print(f"  {us:9.1f}  {name}{'   <- as it is' if name == shown(expansion.SILU_OF_MANY) else ''}")
    sys.stdout.flush()
    return len(right) == len(TILES)


def activated(y: Tensor) -> Tensor:
    """Return silu(g) * u by vLLM's kernel."""
    out = y.new_empty(len(y), y.shape[1] // 2)
    torch.ops._C.silu_and_mul(out, y)
    return out


def is_right(title: str, held: Widened, tile: Blocks | Loop) -> bool:
    """Tell whether a tile's result is near the exact one, and say so on stderr if not."""
    try:
        found = held.silu_of_many(tile).float()
        torch.cuda.synchronize()
    except Exception as failure:  # a compiler raises anything
        print(f"  {title} {shown(tile)}: {type(failure).__name__}: {str(failure)[:200]}", file=sys.stderr)
        return False
    wanted = exact(held)
    wrong = int((~((found - wanted).abs() <= CLOSE * (1 + wanted.abs()))).sum())
    if wrong:
        print(f"  {title} {shown(tile)}: WRONG in {wrong} of {wanted.numel()} elements", file=sys.stderr)
    return not wrong


def exact(held: Widened) -> Tensor:
    """Return silu(g) * u in float32, g and u rounded to the model's dtype before."""
    gated, width, half = held.with_gates().gated, held.settings.width, held.d_out // 2
    assert gated is not None
    y = held.ext[:, : held.d_out].float()
    for part in range(2):
        first = part * width
        up = held.matrix[part * half : (part + 1) * half, held.d_in + first : held.d_in + first + width]
        y[:, part * half : (part + 1) * half] += gated[:, first : first + width].float() @ up.float().T
    return silu_and_mul(y.to(held.ext.dtype).float())
