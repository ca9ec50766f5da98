"""Routing to the k' likeliest of k experts, and the load-balance loss that goes with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cme_bench.adapters.routing.router import Routing
from cme_bench.adapters.shared.lowrank import autocast_off


def top_k_routing(logits: Tensor, top_k: int) -> Routing:
    """Return phi = softmax(logits), and as omega its ``top_k`` largest divided by their sum, elsewhere 0.

    ``logits``: (..., k), float32 or wider. As in Mixtral, and MixLoRA (arXiv 2404.15159).
    """
    with autocast_off(logits):
        phi = logits.softmax(dim=-1)
        largest, chosen = phi.topk(top_k, dim=-1)
        shares = largest / largest.sum(dim=-1, keepdim=True)
        return Routing(phi, torch.zeros_like(phi).scatter(-1, chosen, shares))


def switch_penalty(routings: Sequence[Routing], masks: Sequence[Tensor | None]) -> Tensor:
    """Return ``k sum_e f_e P_e`` over the tokens of all layers together, as MoE-PEFT computes it.

    f_e is the share of tokens that expert e is chosen for, so that f sums to the number of experts that a
    token has; P_e is the mean of phi_e. Its least value is that number, where both are even.

    Args:
        routings: One for each layer, (..., k) each.
        masks: True for tokens that count; None for all.
    """
    k = routings[0].phi.shape[-1]
    device = routings[0].phi.device
    phi, chosen, weight = [], [], []
    for routing, mask in zip(routings, masks, strict=True):
        tokens = routing.phi.shape[:-1]
        counts = torch.ones(tokens, device=routing.phi.device) if mask is None else mask.to(routing.phi)
        phi.append(routing.phi.reshape(-1, k).to(device))
        chosen.append((routing.omega > 0).reshape(-1, k).to(device))
        weight.append(counts.reshape(-1, 1).to(device))
    all_weights = torch.cat(weight)
    total = all_weights.sum().clamp_min(1.0)
    shares = (torch.cat(chosen) * all_weights).sum(dim=0) / total
    likely = (torch.cat(phi) * all_weights).sum(dim=0) / total
    return k * (shares * likely).sum()
