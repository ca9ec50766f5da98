"""One step of a layer whose tokens belong to several adapters: what is launched for it, in which tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from cme_bench.vllm_plugin.expansion import summed_over_ranks
from cme_bench.vllm_plugin.triton_slots import (
    expand_add_slots_kernel,
    expand_add_slots_loop,
    expand_silu_slots_kernel,
    expand_silu_slots_loop,
    gate_kernel,
    shrink_kernel,
)

PROGRAMS = 264
"""Programs that fill the card: two for each of an H100's processors."""
MOST_SPLITS = 16
SPLIT_FROM = 256
"""Least length of a piece into which d_in is cut."""
MIN_EXPERTS = 16
"""The least width of a product on the matrix units; the router's is padded to it."""


@dataclass(frozen=True, slots=True)
class Shrink:
    """How omega z is computed, in tiles of ``tile`` tokens. ``chunk``: most columns of A at once; ``block``:
    numbers of d_in at once; ``registers``: most of a thread, so that two programs share a processor;
    ``programs``: d_in is split until there are so many."""

    tile: int
    chunk: int
    block: int
    warps: int
    stages: int
    registers: int | None = None
    programs: int = PROGRAMS

    @property
    def options(self) -> dict[str, Any]:
        """Return what the compiler is told."""
        most = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **most}


@dataclass(frozen=True, slots=True)
class Expand:
    """How (omega z) B is added: ``columns`` of the output at once.

    ``blocks``: most times that a program does so, loading ahead in a pipeline of ``stages``; 1 is another
    kernel, which loads at once all that it needs. ``programs``: it does fewer where there were not so many.
    """

    tile: int
    columns: int
    warps: int
    blocks: int = 1
    stages: int = 3
    programs: int = PROGRAMS

    def blocks_of(self, d_out: int, tiles: int, most: int) -> int:
        """Return how many blocks a program does, a power of two, so that there are enough programs."""
        blocks, least = 1, self.columns * self.programs
        while 2 * blocks <= min(self.blocks, most) and tiles * d_out >= 2 * blocks * least:
            blocks *= 2
        return blocks


@dataclass(frozen=True, slots=True)
class Plan:
    """How a step is computed; ``silu``: of a layer that also computes silu(gate) * up."""

    shrink: Shrink
    add: Expand
    silu: Expand

    @property
    def tiles(self) -> tuple[int, int, int]:
        """Return the sizes of the tiles."""
        return self.shrink.tile, self.add.tile, self.silu.tile

    def with_programs(self, programs: int) -> Plan:
        """Return the same for a card that so many programs fill."""
        pieces = (replace(piece, programs=programs) for piece in (self.shrink, self.add, self.silu))
        return Plan(*pieces)  # type: ignore[arg-type]


PLANS = {
    128: Plan(Shrink(16, 64, 64, 4, 4, programs=132), Expand(16, 64, 4, 2), Expand(16, 64, 4, 2, 2)),
    256: Plan(Shrink(32, 64, 64, 4, 4, programs=132), Expand(32, 64, 4, 2), Expand(32, 64, 4, 2, 2)),
    512: Plan(Shrink(32, 64, 64, 4, 4), Expand(64, 128, 8), Expand(32, 64, 4, 4, 2)),
    2048: Plan(Shrink(64, 128, 64, 8, 3), Expand(64, 128, 8), Expand(64, 64, 8)),
    1 << 30: Plan(Shrink(128, 128, 64, 8, 3, 128), Expand(128, 128, 8), Expand(128, 64, 8)),
}
"""By the most tokens of a step. Up to 512 the fastest that were tried on an H200; above, chosen by bytes and
registers, as compiled for an H100: none spills in a loop, and all load 16 bytes at once. As compiled for an
L4 or RTX 4090 all fit its 99 KiB of shared memory. ``benchmarks/vllm_kernels.py --tune --slots 8`` compares
others."""


def plan_of(tokens: int) -> Plan:
    """Return the plan of a step of so many tokens."""
    return next(plan for most, plan in PLANS.items() if tokens <= most)


def splits_of(programs: int, d_in: int, wanted: int = PROGRAMS) -> int:
    """Return into how many pieces d_in is cut, a power of two, so that there are enough programs."""
    splits = 1
    while splits < MOST_SPLITS and 2 * splits * SPLIT_FROM <= d_in and splits * programs < wanted:
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

    @property
    def padded(self) -> int:
        return max(MIN_EXPERTS, 1 << (self.experts - 1).bit_length())

    def constants(self, shrink: Shrink) -> dict[str, Any]:
        return {
            "RANK": self.rank,
            "EXPERTS": self.experts,
            "PADDED": self.padded,
            "SHARED": self.shared,
            "CHUNK": chunk_of(self.latent, shrink.chunk),
            "BLOCK_T": shrink.tile,
        }


def chunk_of(width: int, most: int = 128) -> int:
    """Return how many columns are multiplied at once: a power of two that divides ``width``."""
    return min(most, width & -width)


@dataclass(frozen=True, slots=True)
class Held:
    """A layer's adapters, as in ``Stack``, and the part of each grain of its output columns."""

    down: Tensor
    up: Tensor
    router: Tensor
    interaction: Tensor
    settings: Tensor
    part_of_grain: Tensor


class Step:
    """Compute the update of a step's tokens ``x`` (tokens, d_in): first ``shrink``, then one that expands.

    ``tiles``: the table of every size that ``plan`` names.
    """

    def __init__(  # noqa: PLR0917
        self,
        x: Tensor,
        order: Tensor,
        tiles: Mapping[int, Tensor],
        counters: Tensor,
        held: Held,
        shape: Shape,
        plan: Plan | None = None,
    ) -> None:
        self.x, self.order, self.tiles, self.counters = x, order, tiles, counters
        self.held, self.shape, self.plan = held, shape, plan or plan_of(len(x))
        self.slots = len(held.settings)
        tokens, d_in = x.shape
        shrink = self.plan.shrink
        self.constants = shape.constants(shrink)
        self.pieces = shape.parts * (shape.latent // self.constants["CHUNK"])
        self.splits = splits_of(self.likely_tiles(shrink.tile) * self.pieces, d_in, shrink.programs)
        if self.most_tiles(shrink.tile) * self.pieces > len(counters):
            self.splits = 1
        self.gated = x.new_empty(tokens, shape.parts * shape.width)
        held_terms = self.splits > 1 or shape.partial
        terms = (self.splits, tokens) if held_terms else (0, 0)
        self.z = x.new_empty(*terms, shape.parts * shape.latent, dtype=torch.float32)
        self.logits = x.new_empty(*terms, self.pieces * shape.padded, dtype=torch.float32)
        summed = shape.parts * shape.experts if shape.partial else 0
        self.sums = x.new_empty(tokens, summed, dtype=torch.float32)

    def most_tiles(self, size: int) -> int:
        """Return how many tiles of ``size`` the step may have."""
        tokens = len(self.x)
        return min(tokens, -(-tokens // size) + self.slots)

    def likely_tiles(self, size: int) -> int:
        """Return how many tiles it has where half of the slots end within one."""
        tokens = len(self.x)
        return -(-tokens // size) + min(self.slots, tokens) // 2

    def shrink(self) -> None:
        """Compute omega z of every tile; of a row-parallel layer only the terms of z and the logits."""
        held, shape, plan = self.held, self.shape, self.plan.shrink
        tokens, d_in = self.x.shape
        steps = triton.cdiv(triton.cdiv(d_in, plan.block), self.splits)
        shrink_kernel[(self.most_tiles(plan.tile), self.pieces, self.splits)](
            self.x, self.order, self.tiles[plan.tile], held.down, held.router, held.interaction,
            held.settings, self.gated, self.z, self.logits, self.sums, self.counters, tokens, d_in,
            self.x.stride(0), self.gated.stride(0), shape.parts, self.slots, steps, self.splits,
            int(shape.partial),
            **self.constants, EVEN=d_in % plan.block == 0, BLOCK_K=plan.block,
            **plan.options,
        )  # fmt: skip

    def gate(self) -> None:
        """Finish a row-parallel layer's ``shrink``, once every rank has its terms."""
        if not self.shape.partial:
            return
        held, shape, tile = self.held, self.shape, self.plan.shrink.tile
        sums = summed_over_ranks(self.sums) if shape.experts > 1 else self.sums
        gate_kernel[(self.most_tiles(tile), self.pieces)](
            self.tiles[tile], self.z, sums, held.interaction, held.settings, self.gated,
            self.gated.stride(0), shape.parts, self.slots, **self.constants, num_warps=4,
        )  # fmt: skip

    def add(self, y: Tensor) -> Tensor:
        """Add the update to ``y`` (tokens, d_out) in place."""
        d_out, width, plan = y.shape[1], self.shape.width, self.plan.add
        grain, tiles = d_out // len(self.held.part_of_grain), self.most_tiles(plan.tile)
        columns = min(grain, plan.columns)
        arguments = (
            self.gated, self.order, self.tiles[plan.tile], self.held.up, self.held.part_of_grain, y, d_out,
            self.gated.stride(0), y.stride(0), self.slots,
        )  # fmt: skip
        constants = {"WIDTH": width, "GRAIN": grain, "BLOCK_T": plan.tile, "BLOCK_N": columns}
        if plan.blocks == 1 or width != chunk_of(width):
            expand_add_slots_kernel[(d_out // columns, tiles)](
                *arguments, **constants, CHUNK=chunk_of(width), num_warps=plan.warps
            )
            return y
        blocks = plan.blocks_of(d_out, self.likely_tiles(plan.tile), grain // columns)
        expand_add_slots_loop[(d_out // (columns * blocks), tiles)](
            *arguments, blocks, **constants, STAGES=plan.stages, num_warps=plan.warps
        )
        return y

    def silu(self, y: Tensor) -> Tensor:
        """Return silu of the first half of what ``add`` gives times the second, (tokens, d_out / 2)."""
        half, width, plan = y.shape[1] // 2, self.shape.width, self.plan.silu
        out, tiles, columns = y.new_empty(len(y), half), self.most_tiles(plan.tile), plan.columns
        arguments = (
            self.gated, self.order, self.tiles[plan.tile], self.held.up, y, out, len(y), half,
            self.gated.stride(0), y.stride(0), self.slots,
        )  # fmt: skip
        constants = {"WIDTH": width, "BLOCK_T": plan.tile, "BLOCK_N": columns}
        if plan.blocks == 1 or width != chunk_of(width):
            expand_silu_slots_kernel[(half // columns, tiles)](
                *arguments, **constants, CHUNK=chunk_of(width), num_warps=plan.warps
            )
            return out
        blocks = plan.blocks_of(half, self.likely_tiles(plan.tile), plan.blocks)
        expand_silu_slots_loop[(triton.cdiv(half // columns, blocks), tiles)](
            *arguments, blocks, **constants, STAGES=plan.stages, num_warps=plan.warps
        )
        return out
