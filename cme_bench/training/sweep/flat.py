"""The trained numbers of adapters of one shape in one array, and what an optimizer step does to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.adamw import adamw

from cme_bench.training.schedule import BETAS, EPSILON


class FlatParameters:
    """Hold parameters of adapters of the same names and shapes: ``values`` and ``grads``, [numbers of all].

    What all adapters have of a parameter lies together, [adapters, ...], so that operations on it are over
    one piece of memory. The adapters' own parameters become views of it. ``stacked``: these pieces by name,
    leaves whose gradients are pieces of ``grads``; where there is one adapter, its own parameters are such
    leaves.
    """

    def __init__(self, owners: Sequence[Mapping[str, nn.Parameter]], *, undecayed: frozenset[str]) -> None:
        first = owners[0]
        like = next(iter(first.values()))
        total = len(owners) * sum(parameter.numel() for parameter in first.values())
        self.values = torch.empty(total, dtype=like.dtype, device=like.device)
        self.grads = torch.zeros_like(self.values)
        self.means, self.squares = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.stacked: dict[str, Tensor] = {}
        self._owners = list(owners)
        self._places: dict[str, tuple[slice, torch.Size]] = {}
        self._under: dict[str, dict[str, str]] = {}
        start = 0
        for name, parameter in first.items():
            here = slice(start, start + len(owners) * parameter.numel())
            self._places[name] = here, parameter.shape
            value, grad = self.of(self.values, name), self.of(self.grads, name)
            for own, owner in zip(value, owners, strict=True):
                own.copy_(owner[name].data)
                owner[name].data = own
            if len(owners) == 1:
                parameter.grad = grad[0]
            else:
                self.stacked[name] = value.detach().requires_grad_()
                self.stacked[name].grad = grad
            start = here.stop
        decayed = [name for name in self._places if name not in undecayed]
        kinds = [decayed, [name for name in self._places if name in undecayed]]
        self._kinds = [[self._arrays(names, row) for names in kinds] for row in range(len(owners))]

    def leaf(self, name: str) -> Tensor:
        """Return a parameter of all adapters, [adapters, ...], through which gradients reach ``grads``."""
        return self.stacked[name] if self.stacked else self._owners[0][name][None]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the leaves of the parameters whose names begin so, by the rest of their names."""
        if prefix not in self._under:
            names = (name for name in self._places if name.startswith(prefix))
            self._under[prefix] = {name: name.removeprefix(prefix) for name in names}
        return {rest: self.leaf(name) for name, rest in self._under[prefix].items()}

    def of(self, array: Tensor, name: str) -> Tensor:
        """Return what an array like ``values`` has for a parameter, a view, [adapters, ...]."""
        here, shape = self._places[name]
        return array[here].view(len(self._owners), *shape)

    def places(self, names: Sequence[str]) -> Tensor:
        """Return where parameters stand, one behind the other, int64 [adapters, numbers]."""
        every = torch.arange(len(self.values), device=self.values.device)
        return torch.cat([self.of(every, name).flatten(1) for name in names], dim=1)

    def row(self, array: Tensor, number: int) -> Tensor:
        """Return a copy of what an array like ``values`` has for one adapter, on the CPU, [numbers]."""
        return torch.cat([self.of(array, name)[number].flatten() for name in self._places]).cpu()

    @torch.no_grad()
    def put_row(self, array: Tensor, number: int, row: Tensor) -> None:
        """Put what :meth:`row` returned back."""
        pieces = [self.of(array, name)[number] for name in self._places]
        parts = torch.split(row, [piece.numel() for piece in pieces])
        for piece, held in zip(pieces, parts, strict=True):
            piece.copy_(held.view_as(piece))

    def _arrays(self, names: Sequence[str], row: int) -> list[list[Tensor]]:
        """Return an adapter's parts of values, gradients and both moments, as an optimizer takes them."""
        arrays = (self.values, self.grads, self.means, self.squares)
        return [[self.of(array, name)[row] for name in names] for array in arrays]

    def norms(self) -> Tensor:
        """Return the norm of each adapter's gradient, [adapters]."""
        return torch.stack(
            [get_total_norm([grad for kind in own for grad in kind[1]]) for own in self._kinds]
        )

    @torch.no_grad()
    def adamw(self, step: int, rates: Sequence[float], decays: Sequence[float], scales: Tensor) -> None:
        """Take one step of AdamW (arXiv 1711.05101), as ``torch.optim.AdamW`` does.

        Args:
            step: Number of the step, from 1.
            rates: Learning rate of each adapter.
            decays: Weight decay of each adapter.
            scales: What each adapter's gradient is divided by, in place, [adapters].
        """
        for row, own in enumerate(self._kinds):
            for (values, grads, means, squares), decay in zip(own, (decays[row], 0.0), strict=True):
                steps = torch.full((len(values),), step - 1.0, device=scales.device)
                adamw(
                    values,
                    grads,
                    means,
                    squares,
                    [],
                    list(steps.unbind()),
                    fused=True,
                    grad_scale=scales[row],
                    amsgrad=False,
                    beta1=BETAS[0],
                    beta2=BETAS[1],
                    lr=rates[row],
                    weight_decay=decay,
                    eps=EPSILON,
                    maximize=False,
                )

    def state(self) -> dict[str, Tensor]:
        """Return what a training needs to go on: numbers and moments."""
        return {"values": self.values, "means": self.means, "squares": self.squares}
