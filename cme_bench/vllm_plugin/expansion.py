"""The launches behind ``kernels.py``: what gates the latent of an adapter, and multiplies it by B.

They come twice a layer and step, wherever no CUDA graph is replayed. A small model's GPU waits for them then,
so what they need of Python is kept short: nothing is made twice, no tensor is cut where a number does, and
what Triton does before a launch is done once (``launches.py``).
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from cme_bench.vllm_plugin.launches import Launch
from cme_bench.vllm_plugin.triton_kernels import (
    expand_add_kernel,
    expand_add_silu_kernel,
    widen_kernel,
)
from cme_bench.vllm_plugin.triton_loops import expand_add_loop, expand_add_silu_loop


@dataclass(frozen=True, eq=False)
class Settings:
    """The settings of a layer's adapter that the kernels need. ``floor`` 0: omega is not divided by its sum.
    ``partial``: every tensor-parallel rank has a term of z and of the logits."""

    parts: int
    rank: int
    experts: int
    shared: bool
    scale: float
    floor: float
    partial: bool = False

    @functools.cached_property
    def width(self) -> int:
        """Columns of a part's gated latent."""
        return self.rank * self.experts

    @functools.cached_property
    def first_logit(self) -> int:
        """The column of the logits beside z of all parts."""
        return self.parts * self.rank * (1 if self.shared else self.experts)

    @functools.cached_property
    def constants(self) -> dict[str, Any]:
        """Return what all kernels are compiled for."""
        return {
            "RANK": self.rank,
            "EXPERTS": self.experts,
            "PADDED": triton.next_power_of_2(self.experts),
            "SHARED": self.shared,
            "CHUNK": self.chunk,
        }

    @functools.cached_property
    def chunk(self) -> int:
        """Columns of the gated latent that are multiplied at once: a power of two that divides k r."""
        return min(128, self.width & -self.width)

    def logits(self, ext: Tensor, first: int) -> tuple[Tensor, int]:
        """Return a tensor with the router's logits (tokens, parts * k), and the column in which they begin;
        ``ext`` has [z | logits | ...] from the column ``first`` on."""
        first += self.first_logit
        if not self.partial or self.experts == 1:
            return ext, first
        return summed_over_ranks(ext[:, first : first + self.parts * self.experts].float()), 0


settings_of = functools.cache(Settings)
"""The settings for some numbers, always the same object."""


def summed_over_ranks(terms: Tensor) -> Tensor:
    """Return the sum of every tensor-parallel rank's ``terms``."""
    from vllm.distributed import tensor_model_parallel_all_reduce

    total: Tensor = tensor_model_parallel_all_reduce(terms.contiguous())
    return total


class Blocks(NamedTuple):
    """Tile of a program of ``expand_add_kernel``: tokens x output columns, and its warps."""

    tokens: int
    columns: int
    warps: int


MANY = Blocks(128, 128, 8)
"""The tile where the latent is gated already: of the many that fit, one that reads B least often."""


@dataclass(frozen=True, slots=True)
class Loop:
    """Tile of a program of ``triton_loops.py``, and its warps, stages and registers a thread at most.

    ``programs``: of how many it is one, or somewhat fewer. ``ahead``, ``fast``: as the kernel says.
    ``gates``: it gates the latent itself.
    """

    tokens: int
    columns: int
    warps: int
    stages: int
    ahead: int
    programs: int
    registers: int | None = None
    gates: bool = False
    fast: bool = True


SILU_OF_MANY: Blocks | Loop = MANY
"""The tile of silu(g) * u for many tokens; a ``Loop`` only from ``LOOP_FROM`` on, where the card has room."""
ADD_OF_MANY: Loop | None = None
"""The same of y + (omega z) B, where a layer is one part and nothing follows it; None: no loop."""
LOOP_FROM = 4096


@functools.cache
def room_for_loops() -> bool:
    """Tell whether the GPU's programs have the shared memory that any tile of a ``Loop`` needs."""
    return torch.cuda.get_device_capability()[0] in {9, 10}


def expand_blocks(tokens: int, d_out: int) -> Blocks:
    """Return the tile that was fastest on an H100 (``benchmarks/vllm_kernels.py --tune``)."""
    wide = d_out > 8192
    if tokens <= 16:
        return Blocks(16, 64 if wide else 32, 2)
    if tokens <= 64:
        return Blocks(32, 64, 2) if wide else Blocks(32, 32, 4)
    return Blocks(64, 128 if wide else 64, 4)


EARLY_SWITCH = "CME_BENCH_VLLM_EARLY"
"""Environment variable: 1 lets the kernels of few tokens begin before the product ahead of them has ended,
and wait for it when they have loaded of B what they can."""
EARLY_UP_TO = 512


def starts_early(tokens: int) -> bool:
    """Tell whether a step's kernels begin so; cards of before Hopper have no such launches."""
    return tokens <= EARLY_UP_TO and _early_is_asked()


@functools.cache
def _early_is_asked() -> bool:
    return os.environ.get(EARLY_SWITCH) == "1" and torch.cuda.get_device_capability()[0] >= 9


WIDEN_TOKENS, WIDEN_COLUMNS = 16, 512
"""The tile of ``widen_kernel``."""


def _begun(early: bool) -> dict[str, bool]:
    """Return the constants of a kernel that begins early, or not; Triton's interpreter knows no option."""
    return {"EARLY": early, **({"launch_pdl": True} if early else {})}


@functools.cache
def _adding(  # noqa: PLR0917
    settings: Settings, grain: int, gated: bool, columns: int, blocks: Blocks, early: bool
) -> Launch:
    return Launch(
        expand_add_kernel, blocks.warps, **settings.constants, **_begun(early), GATED=gated, GRAIN=grain,
        BLOCK_T=blocks.tokens, BLOCK_N=columns,
    )  # fmt: skip


@functools.cache
def _activating(settings: Settings, gated: bool, columns: int, blocks: Blocks, early: bool) -> Launch:
    return Launch(
        expand_add_silu_kernel, blocks.warps, **settings.constants, **_begun(early), GATED=gated,
        BLOCK_T=blocks.tokens, BLOCK_N=columns,
    )  # fmt: skip


@functools.cache
def _looping(settings: Settings, silu: bool, gated: bool, tile: Loop) -> Launch:
    kernel, fast = (expand_add_silu_loop, {"FAST": tile.fast}) if silu else (expand_add_loop, {})
    return Launch(
        kernel, tile.warps, **settings.constants, GATED=gated, BLOCK_T=tile.tokens, BLOCK_N=tile.columns,
        STAGES=tile.stages, AHEAD=tile.ahead, **fast, maxnreg=tile.registers,
    )  # fmt: skip


@functools.cache
def _widening(settings: Settings) -> Launch:
    return Launch(widen_kernel, 4, **settings.constants, BLOCK_T=WIDEN_TOKENS, BLOCK_D=WIDEN_COLUMNS)


@dataclass(slots=True)
class Widened:
    """The product x [W0; A; S] of a layer: ``ext`` (tokens, rows of the matrix), its first ``d_out`` columns
    the base's. ``gated``: omega z of every part, where a kernel has computed that."""

    ext: Tensor
    matrix: Tensor
    interaction: Tensor
    d_in: int
    d_out: int
    settings: Settings
    gated: Tensor | None = None

    def with_gates(self) -> Widened:
        """Return the same with the latent gated."""
        gated = gated_beside(None, self.ext, self.d_out, self.interaction, self.settings)
        return Widened(self.ext, self.matrix, self.interaction, self.d_in, self.d_out, self.settings, gated)

    def _where(self) -> tuple[Tensor, Tensor, int, int]:
        """Return the tensors with the latent and the logits, and the columns in which these begin."""
        if self.gated is not None:
            return self.gated, self.gated, 0, 0
        logits, logits_first = self.settings.logits(self.ext, self.d_out)
        return self.ext, logits, self.d_out, logits_first

    def expand_add(self, part_of_grain: Tensor, blocks: Blocks | None = None) -> Tensor:
        """Return (tokens, d_out): the base's output and the adapter's update."""
        ext, settings, d_out, gated = self.ext, self.settings, self.d_out, self.gated is not None
        (tokens, stride), grain = ext.shape, d_out // part_of_grain.shape[0]
        blocks = blocks or (MANY if gated else expand_blocks(tokens, d_out))
        columns = min(blocks.columns, grain)
        z, logits, z_first, logits_first = self._where()
        out = ext.new_empty(tokens, d_out)
        _adding(settings, grain, gated, columns, blocks, starts_early(tokens))(
            (-(-d_out // columns), -(-tokens // blocks.tokens)),
            (ext, z, logits, self.matrix, self.interaction, part_of_grain, out),
            tokens, self.d_in, d_out, stride, z.stride(0), logits.stride(0), self.matrix.stride(0),
            z_first, logits_first, settings.scale, settings.floor,
        )  # fmt: skip
        return out

    def expand_add_silu(self, blocks: Blocks | None = None) -> Tensor:
        """Return silu(g) * u, (tokens, d_out / 2), where ``expand_add`` would return [g | u]."""
        tokens, half = len(self.ext), self.d_out // 2
        blocks = blocks or (expand_blocks(tokens, half) if self.gated is None else MANY)
        columns = min(blocks.columns, 64)  # two products and two sums a program
        grid = (-(-half // columns), -(-tokens // blocks.tokens))
        gated, early = self.gated is not None, starts_early(tokens)
        return self._launch(_activating(self.settings, gated, columns, blocks, early), grid, half)

    @property
    def loops_to_silu(self) -> bool:
        """Tell whether ``silu_of_many`` is a loop, which is the best way even where z is not gated yet."""
        return self._can_loop(SILU_OF_MANY, self.d_out // 2)

    def silu_of_many(self, tile: Blocks | Loop | None = None) -> Tensor:
        """Return the same for many tokens, whose latent is gated once and not for each block of columns."""
        half = self.d_out // 2
        if tile is None:
            tile = SILU_OF_MANY if self.loops_to_silu else MANY
        if isinstance(tile, Blocks):
            return self.with_gates().expand_add_silu(tile)
        return self._loop(tile, half, silu=True)

    def add_of_many(self, part_of_grain: Tensor, tile: Loop | None = None) -> Tensor:
        """Return ``expand_add`` of a layer whose one part writes all columns; for many tokens by a loop."""
        if tile is None and self._can_loop(ADD_OF_MANY, self.d_out):
            tile = ADD_OF_MANY
        return self._loop(tile, self.d_out, silu=False) if tile else self.expand_add(part_of_grain)

    def _can_loop(self, tile: Blocks | Loop | None, columns: int) -> bool:
        """Tell whether a step of this layer is one for a loop."""
        if not isinstance(tile, Loop) or len(self.ext) < LOOP_FROM or columns % tile.columns:
            return False
        return self.settings.chunk == self.settings.width and room_for_loops()

    def _loop(self, tile: Loop, columns: int, *, silu: bool) -> Tensor:
        """Launch a loop of which every program has some of the blocks of ``columns``."""
        held = self if tile.gates or self.gated is not None else self.with_gates()
        rows = -(-len(self.ext) // tile.tokens)
        beside = max(1, min(columns // tile.columns, tile.programs // rows))
        launch = _looping(self.settings, silu, held.gated is not None, tile)
        return held._launch(launch, (beside, rows), columns)

    def _launch(self, launch: Launch, grid: tuple[int, int], columns: int) -> Tensor:
        """Launch a kernel whose result is of that many columns, as is each of the layer's parts."""
        ext, settings = self.ext, self.settings
        tokens, stride = ext.shape
        z, logits, z_first, logits_first = self._where()
        out = ext.new_empty(tokens, columns)
        launch(
            grid, (ext, z, logits, self.matrix, self.interaction, out),
            tokens, self.d_in, columns, stride, z.stride(0), logits.stride(0), self.matrix.stride(0),
            z_first, logits_first, settings.scale, settings.floor,
        )  # fmt: skip
        return out


def gated_beside(
    x: Tensor | None, ext: Tensor, first: int, interaction: Tensor, settings: Settings
) -> Tensor:
    """Return [x | omega z of every part], or the latter alone; ``ext`` (tokens, ...) has [z | logits | ...]
    from the column ``first`` on."""
    tokens, d_in = ext.shape[0], 0 if x is None else x.shape[1]
    width = settings.parts * settings.width
    logits, logits_first = settings.logits(ext, first)
    wide = ext.new_empty(tokens, d_in + width)
    copies = -(-d_in // WIDEN_COLUMNS)
    _widening(settings)(
        (copies + width // settings.chunk, -(-tokens // WIDEN_TOKENS)),
        (ext if x is None else x, ext, logits, interaction, wide),
        tokens, d_in, ext.stride(0), logits.stride(0), wide.stride(0), first, logits_first,
        settings.scale, settings.floor, copies,
    )  # fmt: skip
    return wide
