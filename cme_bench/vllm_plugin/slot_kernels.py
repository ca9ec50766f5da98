"""A linear layer whose tokens belong to several adapters, on a CUDA GPU.

``SlotIndex`` has put the tokens of a step in order of their slots and cut them into tiles of one slot. After
the base's product come two kernels, or three:

* shrink: z = x A and the router's logits of every tile, by the matrices of its slot;
* gate: omega z. Where there are few tiles, shrink is split along d_in so that the card is filled; the terms
  are added up, in a fixed order, and gated by a kernel of its own. Else shrink gates what it has computed;
* expand: (omega z) B is added to the base's output in place.

Tokens of the base model, and those that a graph adds, are in no tile and cost nothing. Sums, softmax, M and
gate are float32; omega z is rounded once to the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from cme_bench.vllm_plugin.kernels import grain_of, summed_over_ranks
from cme_bench.vllm_plugin.slot_index import TILES, SlotIndex
from cme_bench.vllm_plugin.slot_reference import Stack
from cme_bench.vllm_plugin.triton_slots import expand_add_slots_kernel, gate_kernel, shrink_kernel

PROGRAMS = 264
"""Programs that fill the card: two for each of an H100's processors."""
BLOCK_K = 64
MOST_SPLITS = 16
SPLIT_FROM = 256
"""Least length of a piece into which d_in is cut."""
MIN_EXPERTS = 16
"""The least width of a product on the matrix units; the router's is padded to it."""


def why_not(stack: Stack) -> str | None:
    """Return why these kernels cannot serve a layer; None if they can."""
    dtype = stack.down.dtype
    if dtype not in {torch.bfloat16, torch.float16}:
        return f"dtype {str(dtype).removeprefix('torch.')}"
    if grain_of(stack.spans, stack.up.shape[1]) is None:
        return "a part's size is no multiple of 64"
    return None


def tile_of(tokens: int) -> int:
    """Return the tokens of a tile, one of ``slot_index.TILES``."""
    if tokens <= 64:
        return 16
    return 32 if tokens <= 512 else 64 if tokens <= 2048 else 128


def splits_of(programs: int, d_in: int) -> int:
    """Return into how many pieces d_in is cut, a power of two, so that there are enough programs."""
    splits = 1
    while splits < MOST_SPLITS and 2 * splits * SPLIT_FROM <= d_in and splits * programs < PROGRAMS // 2:
        splits *= 2
    return splits


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape that all adapters of a layer have, as the kernels know it; ``partial``: every
    tensor-parallel rank has a term of z and of the logits."""

    parts: int
    rank: int
    experts: int
    shared: bool
    partial: bool

    @property
    def latent(self) -> int:
        return self.rank if self.shared else self.rank * self.experts

    @property
    def width(self) -> int:
        return self.rank * self.experts

    def constants(self) -> dict[str, Any]:
        padded = max(MIN_EXPERTS, triton.next_power_of_2(self.experts))
        return {
            "PARTS": self.parts,
            "RANK": self.rank,
            "EXPERTS": self.experts,
            "PADDED": padded,
            "SHARED": self.shared,
            "CHUNK": chunk_of(self.latent),
        }


def chunk_of(width: int) -> int:
    """Return how many columns are multiplied at once: a power of two that divides ``width``."""
    return min(128, width & -width)


def add_update(  # noqa: PLR0917
    y: Tensor,
    x: Tensor,
    order: Tensor,
    tiles: Tensor,
    down: Tensor,
    up: Tensor,
    router: Tensor,
    interaction: Tensor,
    settings: Tensor,
    part_of_grain: Tensor,
    shape: Shape,
    size: int,
) -> None:
    """Add every token's update to ``y`` (tokens, d_out) in place; ``tiles``: of ``size`` tokens each."""
    tokens, d_in = x.shape
    d_out, n_tiles = y.shape[1], triton.cdiv(tokens, size) + len(settings)
    constants = shape.constants()
    pieces = shape.parts * (shape.latent // constants["CHUNK"])
    filled = triton.cdiv(tokens, size) + min(len(settings), tokens) // 2  # those that a step has, about
    splits = splits_of(filled * pieces, d_in)
    whole = splits == 1 and not shape.partial
    per_split = triton.cdiv(triton.cdiv(d_in, splits), BLOCK_K) * BLOCK_K
    gated = x.new_empty(tokens, shape.parts * shape.width)
    terms = (0, 0) if whole else (splits, tokens)
    z = torch.empty(*terms, shape.parts * shape.latent, dtype=torch.float32, device=x.device)
    logits = torch.zeros(*terms, shape.parts * shape.experts, dtype=torch.float32, device=x.device)
    shrink_kernel[(n_tiles, pieces, splits)](
        x, order, tiles, down, router, interaction, settings, gated, z, logits, tokens, d_in, x.stride(0),
        gated.stride(0), per_split, **constants, WHOLE=whole, BLOCK_T=size, BLOCK_K=BLOCK_K,
        num_warps=8 if size == 128 else 4, num_stages=3 if size == 128 else 4,
    )  # fmt: skip
    if not whole:
        if shape.partial and shape.experts > 1:
            logits = summed_over_ranks(logits.sum(0, keepdim=True))
        gate_kernel[(n_tiles, pieces)](
            tiles, z, logits, interaction, settings, gated, tokens, gated.stride(0), SPLITS=splits,
            LOGIT_SPLITS=len(logits), **constants, BLOCK_T=size, num_warps=4,
        )  # fmt: skip
    grain = d_out // len(part_of_grain)
    columns = min(grain, 128 if d_out > 8192 else 64)
    expand_add_slots_kernel[(triton.cdiv(d_out, columns), n_tiles)](
        gated, order, tiles, up, part_of_grain, y, d_out, gated.stride(0), y.stride(0), WIDTH=shape.width,
        GRAIN=grain, CHUNK=chunk_of(shape.width), BLOCK_T=size, BLOCK_N=columns,
        num_warps=8 if size == 128 and columns == 128 else 4,
    )  # fmt: skip


class Slotted:
    """Compute one layer: its stack of adapters, and the index that says which token has which."""

    def __init__(self, stack: Stack, index: SlotIndex, partial: bool) -> None:
        room, d_out = stack.room, stack.up.shape[1]
        grain = grain_of(stack.spans, d_out)
        assert grain is not None
        of_grain = torch.full((d_out // grain,), -1, dtype=torch.int32)
        for part, start, stop in stack.spans:
            of_grain[start // grain : stop // grain] = part
        self._stack, self._index = stack, index
        self._of_grain = of_grain.to(stack.down.device)
        self._shape = (stack.parts, room.rank, room.experts, room.shared_latent, partial)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return (tokens, d_out): the product with ``weight`` and every token's update."""
        result: Tensor = torch.ops.cme_bench.slotted_linear(x, weight, *self._arguments)
        return result

    def updated(self, y: Tensor, x: Tensor) -> Tensor:
        """Return ``y`` (tokens, d_out) with every token's update."""
        result: Tensor = torch.ops.cme_bench.slotted_update(y, x, *self._arguments)
        return result

    @property
    def _arguments(self) -> tuple[Any, ...]:
        s, i = self._stack, self._index
        tables = [i.tiles[size] for size in TILES]
        held = (s.down, s.up, s.router, s.interaction, s.settings, self._of_grain)
        return i.order, tables, *held, *self._shape


def _update_in_place(y: Tensor, x: Tensor, order: Tensor, tables: list[Tensor], *rest: Any) -> Tensor:
    down, up, router, interaction, settings, of_grain, *shape = rest
    size = tile_of(len(x))
    tiles = tables[TILES.index(size)]
    if len(x):
        held = (down, up, router, interaction, settings, of_grain)
        add_update(y, x, order, tiles, *held, Shape(*shape), size)
    return y


def _slotted_linear(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    x = x.contiguous()
    return _update_in_place(torch.nn.functional.linear(x, weight), x, *arguments)


def _slotted_update(y: Tensor, x: Tensor, *arguments: Any) -> Tensor:
    return _update_in_place(y.clone(), x.contiguous(), *arguments)


_ARGUMENTS = (
    "Tensor order, Tensor[] tiles, Tensor down, Tensor up, Tensor router, Tensor interaction, "
    "Tensor settings, Tensor part_of_grain, int parts, int rank, int experts, bool shared, bool partial"
)
_LIBRARY: Any = torch.library.Library("cme_bench", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"slotted_linear(Tensor x, Tensor weight, {_ARGUMENTS}) -> Tensor")
_LIBRARY.define(f"slotted_update(Tensor y, Tensor x, {_ARGUMENTS}) -> Tensor")
_LIBRARY.impl("slotted_linear", _slotted_linear, "CUDA")
_LIBRARY.impl("slotted_update", _slotted_update, "CUDA")
_LIBRARY._register_fake("slotted_linear", lambda x, weight, *rest: x.new_empty(x.shape[0], weight.shape[0]))
_LIBRARY._register_fake("slotted_update", lambda y, *rest: torch.empty_like(y))
