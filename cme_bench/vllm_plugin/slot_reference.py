"""The update of a batch whose tokens belong to several adapters, in plain torch operations.

``by_rows`` is what runs on a CPU, and on a GPU where the kernels cannot and nothing is compiled. ``by_mask``
computes every slot for all tokens, for compiled code. ``slot_kernels`` must equal both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from cme_bench.vllm_plugin.reference import Span, add_up, gated_latent
from cme_bench.vllm_plugin.slot_form import SETTINGS
from cme_bench.vllm_plugin.spec import GatedSpec

Summed = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Stack:
    """Hold the adapters of one layer, slot by slot, each in the form of ``room``.

    down (slots, parts * latent, local_in); up (slots, local_out, k r); router (slots, parts * k, local_in)
    and interaction (slots, parts, k, k), both empty without a router; settings (slots, 3). What is all zero
    is the identity. A token's slot 1 is the first here, its slot 0 the base model.
    """

    down: Tensor
    up: Tensor
    router: Tensor
    interaction: Tensor
    settings: Tensor
    spans: tuple[Span, ...]
    room: GatedSpec

    @classmethod
    def empty(  # noqa: PLR0917
        cls,
        slots: int,
        d_in: int,
        d_out: int,
        spans: Sequence[Span],
        room: GatedSpec,
        dtype: torch.dtype,
        router: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Stack:
        """Return slots that are all zero; ``router``: the dtype of S."""
        parts, k = 1 + max(part for part, _, _ in spans), room.experts if room.routed else 0
        return cls(
            down=torch.zeros(slots, parts * room.latent, d_in, dtype=dtype, device=device),
            up=torch.zeros(slots, d_out, room.gated, dtype=dtype, device=device),
            router=torch.zeros(slots, parts * k, d_in, dtype=router, device=device),
            interaction=torch.zeros(slots, parts, k, k, dtype=torch.float32, device=device),
            settings=torch.zeros(slots, SETTINGS, dtype=torch.float32, device=device),
            spans=tuple(spans),
            room=room,
        )

    @property
    def parts(self) -> int:
        return self.down.shape[1] // self.room.latent

    def shares(self, logits: Tensor, slot: int) -> Tensor:
        """Return ``scale * omega``, (tokens, parts, k), float32; experts that the adapter lacks get none."""
        scale, floor, experts = self.settings[slot - 1].unbind()
        logits = logits.reshape(len(logits), self.parts, -1)
        dead = torch.arange(logits.shape[-1], device=logits.device) >= experts
        phi = logits.masked_fill(dead & (experts > 0), float("-inf")).softmax(dim=-1)
        omega = torch.einsum("tpj,pij->tpi", phi, self.interaction[slot - 1])
        total = torch.where(floor > 0, omega.sum(-1, keepdim=True).clamp_min(floor), 1.0)
        return omega / total * scale

    def updated(self, y: Tensor, x: Tensor, slot: int, summed: Summed) -> Tensor:
        """Return ``y`` with the update of one slot, for all of its rows."""
        own = slot - 1
        gate = self.settings[own, :1].expand(len(x), self.parts, 1)
        if self.room.routed:
            router = self.router[own]
            gate = self.shares(summed(linear(x.to(router.dtype), router).float()), slot)
        return add_up(y, gated_latent(linear(x, self.down[own]), gate, self.room), self.up[own], self.spans)


def alone(logits: Tensor) -> Tensor:
    """Return the router's logits of a layer whose input no other rank has a part of."""
    return logits


def by_rows(
    y: Tensor, x: Tensor, groups: Iterable[tuple[int, Tensor]], stack: Stack, summed: Summed = alone
) -> Tensor:
    """Return ``y`` (tokens, d_out) with the update of every token's slot, slot by slot.

    ``groups``: slots, each with the places of its tokens; the others are the base model's. ``summed``: adds
    up a row-parallel layer's logits over ranks.
    """
    y = y.clone()
    for slot, rows in groups:
        y[rows] = stack.updated(y[rows], x[rows], slot, summed)
    return y


def by_mask(y: Tensor, x: Tensor, slots: Tensor, stack: Stack, summed: Summed = alone) -> Tensor:
    """Return what ``by_rows`` does, in the same way whatever the slots are: graphs may capture it.

    ``slots``: (tokens,), 0 for the base model.
    """
    for slot in range(1, len(stack.settings) + 1):
        y = torch.where((slots == slot).unsqueeze(-1), stack.updated(y, x, slot, summed), y)
    return y
