"""Where the adapter's parts of one vLLM layer lie: merged projections, tensor-parallel slices.

A vLLM layer may hold several linears of the checkpoint side by side (``gate_up_proj``, ``qkv_proj``), and
only a slice of each. Kept apart from vLLM's classes, so that the arithmetic can be tested without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cme_bench.vllm_plugin.reference import Span


@dataclass(frozen=True, slots=True)
class Slice:
    """Output rows ``[start, stop)`` of a layer come from rows ``[source, source + stop - start)`` of a
    checkpoint module's B transposed."""

    start: int
    stop: int
    source: int


@dataclass(frozen=True, slots=True)
class Part:
    """One adapted checkpoint module of a layer. d_in, d_out: sizes of the whole module."""

    module: str
    d_in: int
    d_out: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The adapted modules of one layer; ``inputs`` is the slice of the input dimension that it has."""

    d_out: int
    inputs: tuple[int, int]
    parts: tuple[Part, ...]

    @property
    def spans(self) -> tuple[Span, ...]:
        """Output columns of every part, in order."""
        found = [(p, s.start, s.stop) for p, part in enumerate(self.parts) for s in part.slices]
        return tuple(sorted(found, key=lambda span: span[1]))


def checkpoint_modules(prefix: str, packed: dict[str, list[str]]) -> list[str]:
    """Return the checkpoint's names of the linears in the layer ``prefix``: ``...mlp.gate_up_proj`` holds
    ``...mlp.gate_proj`` and ``...mlp.up_proj``."""
    parent, _, name = prefix.rpartition(".")
    return [f"{parent}.{member}" if parent else member for member in packed.get(name, [name])]


def plan_layout(
    members: Sequence[str],
    adapted: Sequence[str],
    *,
    d_in: int,
    local_in: int,
    local_outs: Sequence[int],
    global_outs: Sequence[int],
    rank: int,
    world: int,
) -> Layout:
    """Return the layout of a layer on tensor-parallel rank ``rank`` of ``world``.

    Args:
        members: Checkpoint modules in the layer, in order; one that stands for all partitions, or one each.
        adapted: Those that have an adapter.
        d_in, local_in: Input size of the whole linear and of this rank's slice; they differ in a row-parallel
            layer.
        local_outs, global_outs: Output size of every partition, on this rank and of the whole. Where the
            whole has fewer shards than there are ranks (key and value heads), neighbours hold the same one.

    Raises ValueError if partitions cannot be told apart.
    """
    if len(members) not in {1, len(local_outs)}:
        raise ValueError(f"{len(members)} modules ({', '.join(members)}) for {len(local_outs)} partitions")
    source = rank * local_in if local_in != d_in else 0
    slices: list[list[Slice]] = [[] for _ in members]
    sizes = [0] * len(members)
    done = 0
    for index, (local, whole) in enumerate(zip(local_outs, global_outs, strict=True)):
        member = min(index, len(members) - 1)
        shard = rank * (whole // local) // world
        slices[member].append(Slice(done, done + local, sizes[member] + shard * local))
        sizes[member] += whole
        done += local
    parts = tuple(
        Part(name, d_in, size, tuple(found))
        for name, size, found in zip(members, sizes, slices, strict=True)
        if name in adapted
    )
    return Layout(done, (source, source + local_in), parts)
