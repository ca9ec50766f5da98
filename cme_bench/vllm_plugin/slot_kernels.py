"""A linear layer whose tokens belong to several adapters, on a CUDA GPU.

``SlotIndex`` has put the tokens of a step in order of their slots and cut them into tiles of one slot. Two
kernels go with the base's product, whatever the step holds:

* shrink: z = x A and the router's logits of every tile, by the matrices of its slot, and from them omega z.
  Where there are few tiles, d_in is split so that the card is filled;
* expand: (omega z) B is added to the base's output in place. Of a layer that gives silu(gate) * up, it writes
  that instead, in place of the kernel that would.

Tokens of the base model, and those that a graph adds, cost nothing, or no more than that kernel. Sums,
softmax, M and gate are float32; omega z is rounded once to the model's dtype.

A row-parallel layer has a slice of x on each rank: the logits are summed over ranks before a third kernel
gates z, which stays a term of a sum as the base's output does.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from cme_bench.vllm_plugin.kernels import GRAINS, grain_of
from cme_bench.vllm_plugin.reference import has_halves
from cme_bench.vllm_plugin.slot_index import TILES, SlotIndex
from cme_bench.vllm_plugin.slot_reference import Stack
from cme_bench.vllm_plugin.slot_step import Held, Shape, Step

BESIDE_SWITCH = "CME_BENCH_VLLM_BESIDE"
"""Environment variable: 1 lets few tokens' shrinking run beside the base's product, on another stream."""
BESIDE_UP_TO = 512


def why_not(stack: Stack) -> str | None:
    """Return why these kernels cannot serve a layer; None if they can."""
    dtype = stack.down.dtype
    if dtype not in {torch.bfloat16, torch.float16}:
        return f"dtype {str(dtype).removeprefix('torch.')}"
    if grain_of(stack.spans, stack.up.shape[1]) is None:
        return f"a part's size is no multiple of {GRAINS[-1]}"
    return None


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

    @property
    def has_halves(self) -> bool:
        """Tell whether the layer is two parts of one size, of which each writes its half."""
        return has_halves(self._stack.spans, self._stack.up.shape[1])

    def linear(self, x: Tensor, weight: Tensor, *, silu: bool = False) -> Tensor:
        """Return (tokens, d_out): the product with ``weight`` and every token's update. ``silu``: of a layer
        that ``has_halves`` return silu of the first times the second, (tokens, d_out / 2)."""
        result: Tensor = torch.ops.cme_bench.slotted_linear(x, weight, *self._arguments, silu)
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
        return i.order, tables, i.counters, *held, *self._shape


def _step(x: Tensor, order: Tensor, tables: list[Tensor], counters: Tensor, *rest: Any) -> Step:
    tiles = dict(zip(TILES, tables, strict=True))
    return Step(x, order, tiles, counters, Held(*rest[:6]), Shape(*rest[6:]))


def _slotted_linear(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    *rest, silu = arguments
    x = x.contiguous()
    if not len(x):
        return _linear_shape(x, weight, *arguments)
    step = _step(x, *rest)
    if len(x) <= BESIDE_UP_TO and os.environ.get(BESIDE_SWITCH) == "1":
        y = _beside(step, x, weight)
    else:
        step.shrink()
        y = linear(x, weight)
    step.gate()
    return step.silu(y) if silu else step.add(y)


def _beside(step: Step, x: Tensor, weight: Tensor) -> Tensor:
    """Return the base's product; the step is shrunk meanwhile. All that is shared is allocated before."""
    main, other = torch.cuda.current_stream(), _other_stream(x.device)
    other.wait_stream(main)
    with torch.cuda.stream(other):
        step.shrink()
    y = linear(x, weight)
    main.wait_stream(other)
    return y


_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def _other_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _STREAMS[device]


def _slotted_update(y: Tensor, x: Tensor, *arguments: Any) -> Tensor:
    x, y = x.contiguous(), y.clone()
    if not len(x):
        return y
    step = _step(x, *arguments)
    step.shrink()
    step.gate()
    return step.add(y)


def _linear_shape(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // 2 if rest[-1] else weight.shape[0])


_ARGUMENTS = (
    "Tensor order, Tensor[] tiles, Tensor counters, Tensor down, Tensor up, Tensor router, "
    "Tensor interaction, Tensor settings, Tensor part_of_grain, int parts, int rank, int experts, "
    "bool shared, bool partial"
)
_LIBRARY: Any = torch.library.Library("cme_bench", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"slotted_linear(Tensor x, Tensor weight, {_ARGUMENTS}, bool silu) -> Tensor")
_LIBRARY.define(f"slotted_update(Tensor y, Tensor x, {_ARGUMENTS}) -> Tensor")
_LIBRARY.impl("slotted_linear", _slotted_linear, "CUDA")
_LIBRARY.impl("slotted_update", _slotted_update, "CUDA")
_LIBRARY._register_fake("slotted_linear", _linear_shape)
_LIBRARY._register_fake("slotted_update", lambda y, *rest: torch.empty_like(y))
