"""Specs and random adapters that the plugin's tests share."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cme_bench.vllm_plugin.spec import GatedSpec

TEAM = GatedSpec("teamlora", 4, 3, 1.5, False, True, None, ("m.gate", "m.up"))
SPECS = {
    "teamlora": TEAM,
    "normalised": replace(TEAM, normalizer_floor=0.01),
    "moelora": replace(TEAM, method="moelora", interaction=False),
    "hydralora": replace(TEAM, method="hydralora", interaction=False, shared_latent=True),
    "lora": replace(TEAM, method="lora", experts=1, interaction=False),
}


def random_tensors(spec: GatedSpec, d_in: int, d_out: int, seed: int = 0) -> dict[str, Tensor]:
    """One module's tensors, by part."""
    source = torch.Generator().manual_seed(seed)
    tensors = {part: torch.randn(shape, generator=source) for part, shape in spec.shapes(d_in, d_out).items()}
    if spec.interaction:
        tensors["interaction"] = torch.eye(spec.experts) + 0.2 * tensors["interaction"]
    return tensors


def update(x: Tensor, t: dict[str, Tensor], spec: GatedSpec) -> Tensor:
    """scale * sum_i omega_i z_i B_i, a loop over tokens and experts."""
    rows = []
    for token in x:
        z = t["down"] @ token
        omega = torch.ones(1)
        if spec.routed:
            omega = torch.softmax(t["router"] @ token, dim=0)
            if spec.interaction:
                omega = t["interaction"] @ omega
            if spec.normalizer_floor is not None:
                omega = omega / max(float(omega.sum()), spec.normalizer_floor)
        total = torch.zeros(len(t["up"]))
        for i in range(spec.experts):
            z_i = z if spec.shared_latent else z[i * spec.rank : (i + 1) * spec.rank]
            total += omega[i] * (t["up"][:, i * spec.rank : (i + 1) * spec.rank] @ z_i)
        rows.append(spec.scale * total)
    return torch.stack(rows)
