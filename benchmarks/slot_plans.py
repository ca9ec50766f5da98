"""Plans of ``cme_bench.vllm_plugin.slot_step`` timed against each other: many adapters in a batch, one layer.

``vllm_kernels.py --tune --slots N`` runs it. Tokens belong to adapters at random. For every size of step a
table has the microseconds that a plan adds to the base's product (with silu(gate) * up behind it, for gate
and up projection), shrinking and expanding each changed alone; fastest first. What is printed of a plan is
what ``slot_step.PLANS`` holds. Each is checked against ``slot_reference`` in float32.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from cme_bench.vllm_plugin import slot_step
from cme_bench.vllm_plugin.reference import silu_and_mul
from cme_bench.vllm_plugin.slot_form import common_room
from cme_bench.vllm_plugin.slot_index import TILES, SlotIndex
from cme_bench.vllm_plugin.slot_reference import Stack, by_rows
from cme_bench.vllm_plugin.slot_step import Expand, Plan, Shrink
from cme_bench.vllm_plugin.spec import GatedSpec
from cme_bench.vllm_plugin.triton_slots import (
    expand_add_slots_kernel,
    expand_add_slots_loop,
    expand_silu_slots_kernel,
    expand_silu_slots_loop,
    shrink_kernel,
)

TOKENS = (8, 32, 128, 256, 512)
GRAIN = 128
TOLERANCE = 1e-2
CALLS = 10
Run = Callable[[], Tensor]

SHRINKS = (
    Shrink(16, 64, 64, 4, 4),
    Shrink(16, 64, 64, 4, 4, programs=132),
    Shrink(16, 128, 64, 4, 4),
    Shrink(16, 64, 128, 4, 3),
    Shrink(32, 64, 64, 4, 4),
    Shrink(32, 64, 64, 4, 4, programs=132),
    Shrink(32, 64, 64, 4, 4, programs=528),
    Shrink(32, 64, 128, 4, 3),
    Shrink(32, 128, 64, 4, 4),
    Shrink(32, 128, 64, 4, 4, programs=132),
    Shrink(64, 64, 64, 4, 4),
    Shrink(64, 64, 64, 4, 4, programs=132),
    Shrink(64, 128, 64, 8, 3),
)
SILUS = (
    Expand(16, 64, 4),
    Expand(16, 64, 4, 2),
    Expand(16, 64, 4, 4),
    Expand(16, 64, 4, 2, stages=2),
    Expand(16, 64, 4, 4, stages=2),
    Expand(32, 64, 4),
    Expand(32, 64, 4, 2),
    Expand(32, 64, 4, 4),
    Expand(32, 64, 4, 8),
    Expand(32, 64, 4, 4, stages=2),
    Expand(32, 64, 4, 2, stages=2),
    Expand(64, 32, 4, 8),
    Expand(64, 32, 4, 8, stages=2),
    Expand(64, 64, 4, 4, stages=2),
)
ADDS = (
    Expand(16, 64, 4),
    Expand(16, 64, 4, 2),
    Expand(32, 64, 4),
    Expand(32, 64, 4, 2),
    Expand(32, 64, 4, 2, programs=132),
    Expand(32, 32, 4, 4),
    Expand(64, 64, 4, 2),
    Expand(64, 64, 4, 2, stages=2),
    Expand(64, 128, 8),
)


def shown(piece: Any) -> str:
    """Return a piece of a plan as it is written in ``PLANS``, or another dataclass of numbers."""
    values = [(field.name, getattr(piece, field.name), field.default) for field in fields(piece)]
    said = [str(value) for _, value, _ in values]
    while said and values[len(said) - 1][1] == values[len(said) - 1][2]:
        said.pop()
    return f"{type(piece).__name__}({', '.join(said)})"


def fits(piece: Shrink | Expand, tokens: int) -> bool:
    """Tell whether tiles of this size are worth a try: their table has room, and they are not much too
    large."""
    return tokens <= TILES[piece.tile] and piece.tile <= max(16, tokens // 4)


def plans(tokens: int, silu: bool) -> dict[str, Plan]:
    """Return what is compared, by name: the default, and those that differ from it in one piece."""
    default = slot_step.plan_of(tokens)
    found = {"default": default}
    found |= {shown(piece): replace(default, shrink=piece) for piece in SHRINKS if fits(piece, tokens)}
    for piece in SILUS if silu else ADDS:
        if fits(piece, tokens):
            found[shown(piece)] = replace(default, silu=piece) if silu else replace(default, add=piece)
    return found


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weight and adapters on the GPU, and a step of it."""

    weight: Tensor
    stack: Stack
    held: slot_step.Held
    shape: slot_step.Shape
    index: SlotIndex
    x: Tensor
    silu: bool

    def base(self) -> Tensor:
        y = linear(self.x, self.weight)
        if not self.silu:
            return y
        out = y.new_empty(len(y), y.shape[1] // 2)
        torch.ops._C.silu_and_mul(out, y)
        return out

    def step(self, plan: Plan) -> slot_step.Step:
        index = self.index
        return slot_step.Step(self.x, index.order, index.tiles, index.counters, self.held, self.shape, plan)

    def finish(self, step: slot_step.Step, y: Tensor) -> Tensor:
        return step.silu(y) if self.silu else step.add(y)

    def run(self, plan: Plan) -> Tensor:
        step = self.step(plan)
        step.shrink()
        return self.finish(step, linear(self.x, self.weight))

    def beside(self, plan: Plan) -> Tensor:
        """Do the same with the step shrunk beside the base's product."""
        from cme_bench.vllm_plugin.slot_kernels import _beside

        step = self.step(plan)
        return self.finish(step, _beside(step, self.x, self.weight))

    def exact(self) -> Tensor:
        stack, x = self.stack, self.x.float()
        names = ("down", "up", "router")
        stack = replace(stack, **{name: getattr(stack, name).float() for name in names})
        y = by_rows(linear(x, self.weight.float()), x, self.index.groups, stack)
        return silu_and_mul(y) if self.silu else y


def layer_of(  # noqa: PLR0917
    d_in: int, outs: tuple[int, ...], spec: GatedSpec, slots: int, tokens: int, device: torch.device
) -> Layer:
    """Return a random layer whose tokens belong to ``slots`` adapters at random."""
    kind, d_out = torch.bfloat16, sum(outs)
    edges = np.cumsum([0, *outs]).tolist()
    spans = [(part, edges[part], edges[part + 1]) for part in range(len(outs))]
    room = common_room([spec])
    stack = Stack.empty(slots, d_in, d_out, spans, room, kind, kind, device)
    for name in ("down", "up", "router", "interaction"):
        torch.nn.init.normal_(getattr(stack, name), std=0.02)
    stack.settings.copy_(torch.tensor([spec.scale, 0.0, float(spec.experts)], device=device).expand(slots, 3))
    parts = [part for part, start, stop in spans for _ in range((stop - start) // GRAIN)]
    of_grain = torch.tensor(parts, dtype=torch.int32, device=device)
    index = SlotIndex(tokens, slots, device)
    index.set(np.random.default_rng(tokens).integers(1, slots + 1, tokens).astype(np.int32))
    return Layer(
        torch.randn(d_out, d_in, device=device, dtype=kind) * d_in**-0.5,
        stack,
        slot_step.Held(stack.down, stack.up, stack.router, stack.interaction, stack.settings, of_grain),
        slot_step.Shape(stack.parts, room.rank, room.experts, room.shared_latent, partial=False),
        index,
        torch.randn(tokens, d_in, device=device, dtype=kind),
        silu=len(outs) == 2,
    )


KERNELS = (
    shrink_kernel,
    expand_add_slots_kernel,
    expand_add_slots_loop,
    expand_silu_slots_kernel,
    expand_silu_slots_loop,
)


@contextlib.contextmanager
def compiling(kernels: Sequence[Any]) -> Iterator[None]:
    """Let launches of ``kernels`` only compile, many at a time; a Triton that cannot compiles each when it is
    launched."""
    try:
        from triton import AsyncCompileMode
    except ImportError:
        AsyncCompileMode = None
    if AsyncCompileMode is None:
        yield
        return
    runs = [kernel.run for kernel in kernels]

    def only_compile(run: Any) -> Any:
        return lambda *args, warmup, **options: run(*args, warmup=True, **options)

    try:
        for kernel, run in zip(kernels, runs, strict=True):
            kernel.run = only_compile(run)
        with ThreadPoolExecutor(16) as pool, AsyncCompileMode(pool, ignore_errors=True):
            yield
    finally:
        for kernel in kernels:
            del kernel.run


def tune(
    layers: dict[str, tuple[int, tuple[int, ...]]],
    spec: GatedSpec,
    slots: int,
    graph_of: Callable[[Callable[[Tensor], Tensor], Tensor, int], torch.cuda.CUDAGraph],
    rounds: int = 5,
) -> bool:
    """Print a table for every layer and size of step; return whether every plan gives the right numbers."""
    import vllm._custom_ops  # noqa: F401 - registers silu_and_mul

    right, device = True, torch.device("cuda")
    made = {
        (name, tokens): layer_of(d_in, outs, spec, slots, tokens, device)
        for name, (d_in, outs) in layers.items()
        for tokens in TOKENS
    }
    with compiling(KERNELS):
        for (_, tokens), layer in made.items():
            for plan in plans(tokens, layer.silu).values():
                layer.run(plan)
    for (name, tokens), layer in made.items():
        right &= _table(f"{name} {tokens}", layer, tokens, graph_of, rounds)
    return right


def _table(title: str, layer: Layer, tokens: int, graph_of: Any, rounds: int) -> bool:
    compared = plans(tokens, layer.silu)
    wanted, right = layer.exact(), True
    graphs = {"base": graph_of(lambda _: layer.base(), layer.x, CALLS)}
    for name, plan in compared.items():
        try:
            found = layer.run(plan).float()
            torch.cuda.synchronize()
        except Exception as failure:  # a compiler raises anything
            print(f"  {title} {name}: {type(failure).__name__}: {str(failure)[:200]}", file=sys.stderr)
            right = False
            continue
        error = float((found - wanted).norm() / wanted.norm())
        if not error < TOLERANCE:
            print(f"  {title} {name}: WRONG, relative error {error:.1e}", file=sys.stderr)
            right = False
            continue
        graphs[name] = graph_of(lambda _, plan=plan: layer.run(plan), layer.x, CALLS)
    if "default" in graphs:
        graphs["default, beside"] = graph_of(lambda _: layer.beside(compared["default"]), layer.x, CALLS)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            times[name].append(replayed(graph))
    medians = {name: statistics.median(found) for name, found in times.items()}
    base = medians.pop("base")
    said = {name: f"{us - base:+.1f}" for name, us in sorted(medians.items(), key=lambda item: item[1])}
    named = [name for name in said if not name.startswith(("Shrink", "Expand"))]
    print(f"{title:12s} base {base:.1f}   " + "   ".join(f"{name} {said[name]}" for name in named))
    for kind in ("Shrink", "Expand"):
        print(f"    {'   '.join(f'{said[name]} {name}' for name in said if name.startswith(kind))}")
    sys.stdout.flush()
    return right


def replayed(graph: torch.cuda.CUDAGraph) -> float:
    """Return the microseconds of one call of ``CALLS`` in a graph."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    graph.replay()
    stop.record()
    stop.synchronize()
    return 1000 * float(start.elapsed_time(stop)) / CALLS
