"""A linear layer with a gated adapter on a CUDA GPU: base weight and adapter in one matrix, fused kernels.

The layer's weight W0 (d_out, d_in), the adapter's A and S (as rows) and B (as columns) lie in one matrix::

            d_in          parts * k r
         +-------------+---------------+
         |     W0      |  B, one block | d_out
         |             |  a part       |
         +-------------+---------------+
         |  A; S; 0    |   (unused)    | parts * (latent + k), padded to 64 rows
         +-------------+---------------+

so that four exact ways to compute ``y = x W0 + (omega z) B`` need no second copy of any weight:

* ``rows``: one product x [W0; A; S] gives y, z and the router's logits; one kernel gates z, multiplies by B
  and adds. Fewest launches: for few tokens.
* ``gated``: the same product; z is gated by a kernel of its own, once and not for each block of columns. For
  many tokens where silu(gate) * up is wanted, since the last kernel then saves the one that computes it.
* ``columns``: a narrow product gives z and the logits; one kernel writes [x | omega z]; products with
  [W0 | B] do the rest. One more pass over x, none over y: for many tokens where y is the wider.
* ``split``: base product and narrow product apart; (omega z) B is added to y in place. One more pass over y,
  none over x: for many tokens where x is the wider.

Where ``columns`` and ``split`` begin was measured (``benchmarks/vllm_kernels.py``). The logits come out of
the same product as z, in the model's dtype; softmax, M and the gate are float32.

A row-parallel layer has a slice of x on each rank. Where vLLM would sum up nothing but its output, the layer
does so itself: ``rows`` and ``gated`` sum [y | z | logits] at once, and each rank then finishes alone. Else
the output is summed by vLLM, z and the base product stay partial; only the logits, k numbers a token and
part, are summed before the softmax.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from cme_bench.vllm_plugin.expansion import (
    Settings,
    Widened,
    gated_beside,
    settings_of,
    summed_over_ranks,
)
from cme_bench.vllm_plugin.reference import Span, has_halves, silu_and_mul
from cme_bench.vllm_plugin.spec import GatedSpec

ROW_ALIGNMENT = 64  # with unaligned rows cuBLAS took 1.2 to 3 times as long
GRAINS = (128, 64)
"""Parts of a layer must begin and end at multiples of one of these many output columns."""
MIN_RANK = 16  # the least inner size of a product on the matrix units
COLUMNS_FROM, SPLIT_FROM = 256 * 22016 * 4096, 1024 * 4096 * 11008
"""Multiply-adds of the base's product from which ``columns`` and ``split`` are faster than ``rows``.

At LLaMA-2-7B's layers that is from 256 and from 1,024 tokens (H100). A small layer never gets there in a
step: its products take less than more launches do, and ``rows`` has fewest.
"""
PRODUCT_PER_PART_FROM = 4096


def grain_of(spans: Sequence[Span], d_out: int) -> int | None:
    """Return the largest grain that all parts, and the layer, fit."""
    edges = [d_out, *(edge for _, start, stop in spans for edge in (start, stop))]
    return next((grain for grain in GRAINS if not any(edge % grain for edge in edges)), None)


def why_not(spec: GatedSpec, spans: Sequence[Span], d_out: int, dtype: torch.dtype) -> str | None:
    """Return why these kernels cannot serve a layer; None if they can."""
    if dtype not in {torch.bfloat16, torch.float16}:
        return f"dtype {str(dtype).removeprefix('torch.')}"
    if spec.rank < MIN_RANK or spec.rank & (spec.rank - 1):
        return f"rank {spec.rank} is no power of two of at least {MIN_RANK}"
    if grain_of(spans, d_out) is None:
        return f"a part's size is no multiple of {GRAINS[-1]}"
    return None


@dataclass(frozen=True, slots=True)
class Store:
    """One layer's matrix and the views into it. Shapes as in the picture above.

    weight (d_out, d_in); factor (d_in, rows of the matrix), which maps x to [y | z | logits]; down (parts *
    latent, d_in); router (parts * k, d_in), empty without a router; interaction (parts, k, k), float32;
    part_of_grain (d_out / grain,), the part that writes those output columns, -1 for none; numbers, what
    ``numbers_of`` says of the layer.
    """

    matrix: Tensor
    weight: Tensor
    factor: Tensor
    down: Tensor
    router: Tensor
    interaction: Tensor
    part_of_grain: Tensor
    spans: tuple[Span, ...]
    spec: GatedSpec
    numbers: str

    @classmethod
    def build(cls, weight: Tensor, spans: Sequence[Span], spec: GatedSpec) -> Store:
        """Return the matrix with ``weight`` (d_out, d_in) copied in, and an adapter that is all zero."""
        d_out, d_in = weight.shape
        parts = 1 + max(part for part, _, _ in spans)
        k = spec.experts if spec.routed else 0
        rows = parts * (spec.latent + k)
        matrix = weight.new_zeros(
            d_out + -(-rows // ROW_ALIGNMENT) * ROW_ALIGNMENT, d_in + parts * spec.gated
        )
        matrix[:d_out, :d_in] = weight
        z_end = d_out + parts * spec.latent
        grain = grain_of(spans, d_out)
        assert grain is not None
        of_grain = torch.full((d_out // grain,), -1, dtype=torch.int32)
        for part, start, stop in spans:
            of_grain[start // grain : stop // grain] = part
        return cls(
            matrix=matrix,
            weight=matrix[:d_out, :d_in],
            factor=matrix[:, :d_in].T,
            down=matrix[d_out:z_end, :d_in],
            router=matrix[z_end : z_end + parts * k, :d_in],
            interaction=torch.eye(spec.experts, dtype=torch.float32, device=weight.device).repeat(
                parts, 1, 1
            ),
            part_of_grain=of_grain.to(weight.device),
            spans=tuple(spans),
            spec=spec,
            numbers=numbers_of(spans, d_out, spec),
        )

    def place(self, down: Tensor, up: Tensor, router: Tensor | None, interaction: Tensor | None) -> None:
        """Copy an adapter in; ``up`` is (d_out, k r)."""
        self.down.copy_(down)
        d_in, width = self.weight.shape[1], self.spec.gated
        for part, start, stop in self.spans:
            first = d_in + part * width
            self.matrix[start:stop, first : first + width].copy_(up[start:stop])
        if router is not None:
            self.router.copy_(router)
        if interaction is not None:
            self.interaction.copy_(interaction)

    @property
    def has_halves(self) -> bool:
        """Tell whether the layer is two parts of one size, of which each writes its half."""
        return has_halves(self.spans, self.weight.shape[0])

    def apply(
        self, x: Tensor, way: str = "auto", *, partial: bool = False, total: bool = False, silu: bool = False
    ) -> Tensor:
        """Map (tokens, d_in) to (tokens, d_out), by one of ``WAYS``; "auto" goes by the number of tokens.

        ``partial``: x and the matrix are this rank's slice of the inputs. The result is then a term of a sum
        over the tensor-parallel ranks, or with ``total`` that sum. ``silu``: of a layer that ``has_halves``
        return silu of the first times the second, (tokens, d_out / 2).
        """
        flags = ("partial " if partial else "") + ("total " if total else "") + ("silu " if silu else "")
        result: Tensor = torch.ops.cme_bench.gated_linear(
            x,
            self.factor,
            self.matrix,
            self.interaction,
            self.part_of_grain,
            flags + way + " " + self.numbers,
        )
        return result


def numbers_of(spans: Sequence[Span], d_out: int, spec: GatedSpec) -> str:
    """Return a layer's sizes and settings as a word, for ``Form.read``."""
    numbers = (spec.rank, spec.experts, spec.shared_latent, spec.scale, spec.normalizer_floor or 0.0)
    return json.dumps([list(spans), d_out, *numbers], separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Form:
    """How an operator's call is computed. ``settings`` say whether terms of a sum over ranks are in what the
    gate sees; in ``summed`` none are."""

    way: str
    spans: tuple[Span, ...]
    d_out: int
    settings: Settings
    summed: Settings
    total: bool
    silu: bool

    @staticmethod
    @functools.cache
    def read(text: str) -> Form:
        """Return what an operator was told in words: flags, a way, and ``numbers_of`` the layer.

        One argument takes 3.5 us less of a call than one a number. It says all: compiled code keeps it, and
        another process may run that. Raises ValueError for a way that is none.
        """
        *flags, way, numbers = text.split(" ")
        if way not in WAYS:
            raise ValueError(f"way {way!r}: choose one of {', '.join(WAYS)}")
        spans, d_out, rank, experts, shared, scale, floor = json.loads(numbers)
        parts = 1 + max(part for part, _, _ in spans)
        adapter = (parts, rank, experts, shared, float(scale), float(floor))
        return Form(
            way=way,
            spans=tuple((part, start, stop) for part, start, stop in spans),
            d_out=d_out,
            settings=settings_of(*adapter, "partial" in flags),
            summed=settings_of(*adapter, False),
            total="total" in flags,
            silu="silu" in flags,
        )


WAYS = ("auto", "rows", "columns", "split", "gated")


def way_of(tokens: int, d_in: int, d_out: int, *, total: bool, silu: bool) -> str:
    """Return the way that "auto" stands for."""
    many, first = ("columns", COLUMNS_FROM) if d_out > d_in else ("split", SPLIT_FROM)
    if tokens * d_in * d_out < first:
        return "rows"
    return "gated" if silu or total else many


def _gated_linear(  # noqa: PLR0917 - an operator's schema
    x: Tensor, factor: Tensor, matrix: Tensor, interaction: Tensor, part_of_grain: Tensor, form: str
) -> Tensor:
    call = Form.read(form)
    x = x.contiguous()
    tokens, d_in = x.shape
    way, d_out, settings = call.way, call.d_out, call.settings
    if way == "auto":
        way = way_of(tokens, d_in, d_out, total=call.total, silu=call.silu)
    if way in {"rows", "gated"}:
        ext = torch.mm(x, factor)
        if call.total:
            ext, settings = summed_over_ranks(ext), call.summed
        widened = Widened(ext, matrix, interaction, d_in, d_out, settings)
        if call.silu and (way == "gated" or widened.loops_to_silu):
            return widened.silu_of_many()
        widened = widened.with_gates() if way == "gated" else widened
        if call.silu:
            return widened.expand_add_silu()
        whole = call.spans == ((0, 0, d_out),)
        return (widened.add_of_many if whole else widened.expand_add)(part_of_grain)
    apart = _columns if way == "columns" else _split
    y = apart(x, matrix, interaction, d_out, settings, call.spans)
    y = summed_over_ranks(y) if call.total else y
    return _activated(y) if call.silu else y


def _activated(y: Tensor) -> Tensor:
    """Return silu of the first half times the second, by vLLM's kernel where there is one."""
    fused = getattr(torch.ops._C, "silu_and_mul", None)
    if fused is None or not y.is_cuda:
        return silu_and_mul(y)
    out = y.new_empty(len(y), y.shape[1] // 2)
    fused(out, y)
    return out


def _columns(  # noqa: PLR0917
    x: Tensor, matrix: Tensor, interaction: Tensor, d_out: int, settings: Settings, spans: Sequence[Span]
) -> Tensor:
    """Return [x | omega z] [W0 | B]. Of B's blocks, part p needs its own and those before it. One product per
    part is narrower, which pays once there are enough tokens to fill the card with each."""
    d_in = x.shape[1]
    ext = linear(x, matrix[d_out:, :d_in])
    wide = gated_beside(x, ext, 0, interaction, settings)
    if len(wide) < PRODUCT_PER_PART_FROM or [span[0] for span in spans] != list(range(settings.parts)):
        return linear(wide, matrix[:d_out])
    y = wide.new_empty(len(wide), d_out)
    edges = [*(start for _, start, _ in spans), d_out]
    edges[0] = 0
    for part in range(settings.parts):
        k = d_in + (part + 1) * settings.width
        start, stop = edges[part], edges[part + 1]
        torch.mm(wide[:, :k], matrix[start:stop, :k].T, out=y[:, start:stop])
    return y


def _split(  # noqa: PLR0917
    x: Tensor, matrix: Tensor, interaction: Tensor, d_out: int, settings: Settings, spans: Sequence[Span]
) -> Tensor:
    """Return x W0 with (omega z) B added in place, part by part."""
    d_in, width = x.shape[1], settings.width
    ext = linear(x, matrix[d_out:, :d_in])
    y = linear(x, matrix[:d_out, :d_in])
    gated = gated_beside(None, ext, 0, interaction, settings)
    for part, start, stop in spans:
        first = part * width
        up = matrix[start:stop, d_in + first : d_in + first + width]
        piece = y[:, start:stop]
        torch.addmm(piece, gated[:, first : first + width], up.T, out=piece)
    return y


def _gated_linear_shape(  # noqa: PLR0917
    x: Tensor, factor: Tensor, matrix: Tensor, interaction: Tensor, part_of_grain: Tensor, form: str
) -> Tensor:
    call = Form.read(form)
    return x.new_empty(x.shape[0], call.d_out // 2 if call.silu else call.d_out)


_LIBRARY: Any = torch.library.Library("cme_bench", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "gated_linear(Tensor x, Tensor factor, Tensor matrix, Tensor interaction, Tensor part_of_grain, "
    "str form) -> Tensor"
)
_LIBRARY.impl("gated_linear", _gated_linear, "CUDA")
_LIBRARY._register_fake("gated_linear", _gated_linear_shape)
