"""The trained numbers of adapters of one shape in one array, and what an optimizer step does to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cme_bench.training.schedule import BETAS, EPSILON


class FlatParameters:
    """Hold parameters of adapters of the same names and shapes: ``values`` and ``grads``, [adapters, n].

    The adapters' own parameters become views of ``values``. ``stacked``: by name, [adapters, ...], leaves
    whose gradients are views of ``grads``; where there is one adapter, its own parameters are such leaves.
    """

    def __init__(self, owners: Sequence[Mapping[str, nn.Parameter]], *, undecayed: frozenset[str]) -> None:
        first = owners[0]
        like = next(iter(first.values()))
        sizes = [parameter.numel() for parameter in first.values()]
        self.values = torch.empty(len(owners), sum(sizes), dtype=like.dtype, device=like.device)
        self.grads = torch.zeros_like(self.values)
        self.means, self.squares = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.decayed = torch.cat(
            [like.new_full((p.numel(),), float(name not in undecayed)) for name, p in first.items()]
        ).detach()
        self.stacked: dict[str, Tensor] = {}
        self._owners = list(owners)
        self._places: dict[str, tuple[slice, torch.Size]] = {}
        start = 0
        for (name, parameter), size in zip(first.items(), sizes, strict=True):
            here = slice(start, start + size)
            self._places[name] = here, parameter.shape
            shape = (len(owners), *parameter.shape)
            value, grad = self.values[:, here].view(shape), self.grads[:, here].view(shape)
            for i, owner in enumerate(owners):
                value[i].copy_(owner[name].data)
                owner[name].data = value[i]
            if len(owners) == 1:
                parameter.grad = grad[0]
            else:
                self.stacked[name] = value.detach().requires_grad_()
                self.stacked[name].grad = grad
            start += size

    def leaf(self, name: str) -> Tensor:
        """Return a parameter of all adapters, [adapters, ...], through which gradients reach ``grads``."""
        return self.stacked[name] if self.stacked else self._owners[0][name][None]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the leaves of the parameters whose names begin so, by the rest of their names."""
        return {
            name.removeprefix(prefix): self.leaf(name) for name in self._places if name.startswith(prefix)
        }

    def by_name(self, row: Tensor) -> dict[str, Tensor]:
        """Return an adapter's row of an array like ``values``, as views by parameter."""
        return {name: row[here].view(shape) for name, (here, shape) in self._places.items()}

    def norms(self) -> Tensor:
        """Return the norm of each adapter's gradient, [adapters]."""
        norms: Tensor = torch.linalg.vector_norm(self.grads, dim=1)
        return norms

    def scale_grads(self, factors: Tensor) -> None:
        """Multiply each adapter's gradient by its factor, [adapters]."""
        self.grads.mul_(factors[:, None])

    @torch.no_grad()
    def adamw(self, step: int, rates: Tensor, decays: Tensor) -> None:
        """Take one step of AdamW (arXiv 1711.05101), as ``torch.optim.AdamW`` does.

        Args:
            step: Number of the step, from 1.
            rates: Learning rate of each adapter, [adapters].
            decays: Weight decay of each adapter, [adapters].
        """
        first, second = BETAS
        rate = rates[:, None]
        self.values.mul_(1 - rate * decays[:, None] * self.decayed)
        self.means.lerp_(self.grads, 1 - first)
        self.squares.mul_(second).addcmul_(self.grads, self.grads, value=1 - second)
        denominator = (self.squares.sqrt() / (1 - second**step) ** 0.5).add_(EPSILON)
        self.values.sub_(rate / (1 - first**step) * self.means / denominator)

    def state(self) -> dict[str, Tensor]:
        """Return what a training needs to go on: numbers and moments."""
        return {"values": self.values, "means": self.means, "squares": self.squares}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put what :meth:`state` returned back."""
        for name, held in self.state().items():
            held.copy_(state[name])
