"""The adapters straight from the equations: a loop over experts, k tensors of full width, row vectors.

Independent of the package: only the stored parameters are read, by their documented layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def _experts(tensors: Tensors, k: int, r: int) -> tuple[list[Tensor], list[Tensor]]:
    """A_i (d_in, r) and B_i (r, d_out); one A repeated if there is only one."""
    down, up = tensors["down"].T, tensors["up"].T
    shared = down.shape[1] == r
    pairs = [(down if shared else down[:, i * r : (i + 1) * r], up[i * r : (i + 1) * r]) for i in range(k)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def moelora(x: Tensor, t: Tensors, k: int, r: int, alpha: float) -> Tensor:
    """(alpha / r) sum_i g_i x A_i B_i, g = softmax(x R)."""
    g = torch.softmax(x @ t["router"].T, dim=-1)
    a, b = _experts(t, k, r)
    total = torch.zeros(())
    for i in range(k):
        total = total + g[..., i : i + 1] * (x @ a[i] @ b[i])
    return alpha / r * total


hydralora = moelora  # the same sum, with A_1 = ... = A_k, which _experts reads off the shapes


def moslora(x: Tensor, t: Tensors, k: int, r: int, alpha: float) -> Tensor:
    """(alpha / r) x A W B."""
    return alpha / r * (x @ t["down"].T @ t["mixer"].T @ t["up"].T)


def mixlora(x: Tensor, t: Tensors, k: int, r: int, alpha: float) -> Tensor:
    """(alpha / r) x A B, which MixLoRA puts on linears outside the feed-forward block."""
    return alpha / r * (x @ t["down"].T @ t["up"].T)


def teamlora(x: Tensor, t: Tensors, k: int, r: int, alpha: float) -> Tensor:
    """z = x A; phi = softmax(x S); omega = M phi; (alpha / r) sum_i omega_i z_i B_i."""
    z = x @ t["down"].T
    phi = torch.softmax(x @ t["router"].T, dim=-1)
    total = torch.zeros(())
    for i in range(k):
        omega_i = torch.zeros(phi.shape[:-1], dtype=phi.dtype)
        for j in range(k):
            omega_i = omega_i + t["interaction"][i, j] * phi[..., j]
        z_i = z[..., i * r : (i + 1) * r]
        b_i = t["up"].T[i * r : (i + 1) * r]
        total = total + omega_i.unsqueeze(-1) * (z_i @ b_i)
    return alpha / r * total


def authors(
    x: Tensor, a: Tensor, b: list[Tensor], s: Tensor, m0: Tensor, *, alpha: float, total_rank: int
) -> Tensor:
    """The formula of the authors' layer, with weights as torch.nn.Linear keeps them: omega = phi + phi M0,
    renormalised to sum 1, times k; (alpha / r) sum_i omega_i z_i B_i with r the total rank."""
    k = len(b)
    phi = torch.softmax(x @ s.T, dim=-1)
    omega = phi + phi @ m0
    omega = omega / omega.sum(-1, keepdim=True) * k
    z = (x @ a.T).split(total_rank // k, dim=-1)
    parts = [alpha / total_rank * omega[..., i : i + 1] * (z[i] @ b[i].T) for i in range(k)]
    return torch.stack(parts).sum(0)
