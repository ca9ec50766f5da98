"""One step of a layer whose tokens belong to several adapters: what is launched for it, in which tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from cme_bench.vllm_plugin.expansion import summed_over_ranks
from cme_bench.vllm_plugin.kernels import GRAINS
from cme_bench.vllm_plugin.slot_index import TILES
from cme_bench.vllm_plugin.triton_slots import (
    expand_add_slots_kernel,
    expand_silu_slots_kernel,
    gate_kernel,
    shrink_kernel,
)

PROGRAMS = 264
"""Programs that fill the card: two for each of an H100's processors."""
BLOCK_K = 64
MOST_SPLITS = 16
SPLIT_FROM = 256
"""Least length of a piece into which d_in is cut."""
MIN_EXPERTS = 16
"""The least width of a product on the matrix units; the router's is padded to it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a tile size is computed. ``chunk``: most columns of A at once; ``columns``: of the output;
    ``registers``: most of a thread, so that two programs share a processor."""

    chunk: int
    warps: int
    stages: int
    registers: int | None
    columns: int
    expand_warps: int


PLANS = dict(
    zip(
        TILES,
        (
            Plan(64, 4, 4, None, 64, 4),
            Plan(64, 4, 4, None, 64, 4),
            Plan(128, 8, 3, None, 128, 8),
            Plan(128, 8, 3, 128, 128, 8),
        ),
        strict=True,
    )
)
"""Chosen by bytes and registers, as compiled for an H100: none spills in a loop, and all load 16 bytes at
once."""


def splits_of(programs: int, d_in: int) -> int:
    """Return into how many pieces d_in is cut, a power of two, so that there are enough programs."""
    splits = 1
    while splits < MOST_SPLITS and 2 * splits * SPLIT_FROM <= d_in and splits * programs < PROGRAMS:
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

    def constants(self, size: int) -> dict[str, Any]:
        return {
            "RANK": self.rank,
            "EXPERTS": self.experts,
            "PADDED": self.padded,
            "SHARED": self.shared,
            "CHUNK": chunk_of(self.latent, PLANS[size].chunk),
            "BLOCK_T": size,
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

    ``tiles``: the table of the size that ``tile_of`` names.
    """

    def __init__(  # noqa: PLR0917
        self, x: Tensor, order: Tensor, tiles: Tensor, counters: Tensor, held: Held, shape: Shape, size: int
    ) -> None:
        self.x, self.order, self.tiles, self.counters = x, order, tiles, counters
        self.held, self.shape, self.size = held, shape, size
        tokens, d_in = x.shape
        self.slots = len(held.settings)
        full = triton.cdiv(tokens, size)
        self.n_tiles = min(tokens, full + self.slots)
        constants = shape.constants(size)
        self.pieces = shape.parts * (shape.latent // constants["CHUNK"])
        likely = full + min(self.slots, tokens) // 2  # half of the slots end within a tile
        self.splits = splits_of(likely * self.pieces, d_in)
        if self.n_tiles * self.pieces > len(counters):
            self.splits = 1
        self.gated = x.new_empty(tokens, shape.parts * shape.width)
        held_terms = self.splits > 1 or shape.partial
        terms = (self.splits, tokens) if held_terms else (0, 0)
        self.z = x.new_empty(*terms, shape.parts * shape.latent, dtype=torch.float32)
        self.logits = x.new_empty(*terms, self.pieces * shape.padded, dtype=torch.float32)
        summed = shape.parts * shape.experts if shape.partial else 0
        self.sums = x.new_empty(tokens, summed, dtype=torch.float32)

    def shrink(self) -> None:
        """Compute omega z of every tile; of a row-parallel layer only the terms of z and the logits."""
        held, shape, plan = self.held, self.shape, PLANS[self.size]
        tokens, d_in = self.x.shape
        steps = triton.cdiv(triton.cdiv(d_in, BLOCK_K), self.splits)
        options = {} if plan.registers is None else {"maxnreg": plan.registers}
        shrink_kernel[(self.n_tiles, self.pieces, self.splits)](
            self.x, self.order, self.tiles, held.down, held.router, held.interaction, held.settings,
            self.gated, self.z, self.logits, self.sums, self.counters, tokens, d_in, self.x.stride(0),
            self.gated.stride(0), shape.parts, self.slots, steps, self.splits, int(shape.partial),
            **shape.constants(self.size), EVEN=d_in % BLOCK_K == 0, BLOCK_K=BLOCK_K, num_warps=plan.warps,
            num_stages=plan.stages, **options,
        )  # fmt: skip

    def gate(self) -> None:
        """Finish a row-parallel layer's ``shrink``, once every rank has its terms."""
        if not self.shape.partial:
            return
        held, shape = self.held, self.shape
        sums = summed_over_ranks(self.sums) if shape.experts > 1 else self.sums
        gate_kernel[(self.n_tiles, self.pieces)](
            self.tiles, self.z, sums, held.interaction, held.settings, self.gated, self.gated.stride(0),
            shape.parts, self.slots, **shape.constants(self.size), num_warps=4,
        )  # fmt: skip

    def add(self, y: Tensor) -> Tensor:
        """Add the update to ``y`` (tokens, d_out) in place."""
        d_out, width = y.shape[1], self.shape.width
        plan, grain = PLANS[self.size], d_out // len(self.held.part_of_grain)
        columns = min(grain, plan.columns)
        expand_add_slots_kernel[(d_out // columns, self.n_tiles)](
            self.gated, self.order, self.tiles, self.held.up, self.held.part_of_grain, y, d_out,
            self.gated.stride(0), y.stride(0), self.slots, WIDTH=width, GRAIN=grain, CHUNK=chunk_of(width),
            BLOCK_T=self.size, BLOCK_N=columns, num_warps=plan.expand_warps,
        )  # fmt: skip
        return y

    def silu(self, y: Tensor) -> Tensor:
        """Return silu of the first half of what ``add`` gives times the second, (tokens, d_out / 2)."""
        half, width = y.shape[1] // 2, self.shape.width
        out = y.new_empty(len(y), half)
        columns = GRAINS[-1]  # two products and two sums a program
        expand_silu_slots_kernel[(half // columns, self.n_tiles)](
            self.gated, self.order, self.tiles, self.held.up, y, out, len(y), half, self.gated.stride(0),
            y.stride(0), self.slots, WIDTH=width, CHUNK=chunk_of(width), BLOCK_T=self.size, BLOCK_N=columns,
            num_warps=PLANS[self.size].expand_warps,
        )  # fmt: skip
        return out
