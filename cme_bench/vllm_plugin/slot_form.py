"""Adapters of several shapes in one common form, so that slots of the same layer can hold any of them.

A slot has room for K experts of rank R. A smaller adapter is padded: rows of A and columns of B with zeros,
experts that it does not have with a share of zero. A LoRA has no router; there every expert's share is made
one, by an M of ones, and its rank is spread over the experts. All of this is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from cme_bench.vllm_plugin.spec import GatedSpec

MIN_RANK = 16
"""The least inner size of a product on a GPU's matrix units."""
SETTINGS = 3
"""Numbers of an adapter that differ by slot: scale, floor of the normaliser (0: none), experts."""


def common_room(specs: Sequence[GatedSpec]) -> GatedSpec:
    """Return the spec of slots that hold any adapter of ``specs``, on all modules of any."""
    experts = max(spec.experts for spec in specs)
    shared = experts > 1 and all(spec.shared_latent and spec.routed for spec in specs)
    ranks = [spec.rank if spec.routed else -(-spec.rank // experts) for spec in specs]
    rank = max(MIN_RANK, 1 << (max(ranks) - 1).bit_length())
    modules = {module for spec in specs for module in spec.modules}
    return GatedSpec("slots", rank, experts, 1.0, shared, experts > 1, None, tuple(sorted(modules)))


def why_no_room(spec: GatedSpec, room: GatedSpec) -> str:
    """Return why slots of ``room`` cannot hold an adapter of ``spec``; "" if they can."""
    if missing := sorted({*spec.modules} - {*room.modules}):
        return f"it adapts {missing[0]}, for which the engine was given no room"
    if spec.experts > room.experts:
        return f"it has {spec.experts} experts, the engine has room for {room.experts}"
    if room.shared_latent and not (spec.shared_latent and spec.routed):
        return "its experts have a latent each, the engine has room for one that they share"
    most = room.rank if spec.routed else room.latent
    return "" if spec.rank <= most else f"its rank is {spec.rank}, the engine has room for {most}"


def fitted(tensors: Mapping[str, Tensor], spec: GatedSpec, room: GatedSpec) -> dict[str, Tensor]:
    """Return an adapter's tensors of one layer, as ``file.Place`` has them, in the form of ``room``.

    ``down`` (parts * latent, local_in), ``up`` (local_out, k r), ``router`` (parts * K, local_in),
    ``interaction`` (parts, K, K), and ``settings`` (3,); float32.
    """
    down, up = tensors["down"].float(), tensors["up"].float()
    d_in = down.shape[1]
    numbers = [spec.scale, spec.normalizer_floor or 0.0, float(spec.experts)]
    settings = torch.tensor(numbers, dtype=torch.float32)
    if not spec.routed:
        parts = len(down) // spec.rank
        found = {
            "down": pad(down.reshape(parts, spec.rank, d_in), (0, 0, 0, room.latent - spec.rank)),
            "up": pad(up, (0, room.gated - spec.rank)),
        }
        settings[2] = room.experts
        router = down.new_zeros(parts, room.experts, d_in)
        interaction = torch.ones(parts, room.experts, room.experts)
    else:
        more_rank, more = room.rank - spec.rank, room.experts - spec.experts
        latents = 1 if spec.shared_latent else spec.experts
        parts = len(down) // (latents * spec.rank)
        rows = pad(down.reshape(parts, latents, spec.rank, d_in), (0, 0, 0, more_rank))
        if spec.shared_latent and not room.shared_latent:
            rows = rows.repeat(1, spec.experts, 1, 1)
        if not room.shared_latent:
            rows = pad(rows, (0, 0, 0, 0, 0, more))
        columns = pad(up.reshape(len(up), spec.experts, spec.rank), (0, more_rank, 0, more))
        found = {"down": rows, "up": columns.flatten(1)}
        router = pad(tensors["router"].float().reshape(parts, spec.experts, d_in), (0, 0, 0, more))
        own = tensors.get("interaction")
        own = torch.eye(spec.experts).repeat(parts, 1, 1) if own is None else own.float()
        interaction = pad(own, (0, more, 0, more))
    found["down"] = found["down"].reshape(-1, d_in)
    found["settings"] = settings
    if room.routed:
        found |= {"router": router.reshape(-1, d_in), "interaction": interaction}
    return found
