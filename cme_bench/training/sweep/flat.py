"""The trained numbers of adapters of one shape in one array, and what an optimizer step does to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

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
        kinds = groupby(self._places.items(), lambda item: item[0] not in undecayed)
        runs = [(decayed, [here for _, (here, _) in items]) for decayed, items in kinds]
        self._runs = [(slice(parts[0].start, parts[-1].stop), decayed) for decayed, parts in runs]

    def leaf(self, name: str) -> Tensor:
        """Return a parameter of all adapters, [adapters, ...], through which gradients reach ``grads``."""
        return self.stacked[name] if self.stacked else self._owners[0][name][None]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the leaves of the parameters whose names begin so, by the rest of their names."""
        return {
            name.removeprefix(prefix): self.leaf(name) for name in self._places if name.startswith(prefix)
        }

    def of(self, array: Tensor, name: str) -> Tensor:
        """Return what an array like ``values`` has for a parameter, a view, [adapters, ...]."""
        here, shape = self._places[name]
        return array[:, here].view(len(array), *shape)

    def places(self, names: Sequence[str]) -> Tensor:
        """Return where parameters stand in a row, one behind the other, int64 [numbers]."""
        parts = [torch.arange(here.start, here.stop) for here, _ in (self._places[name] for name in names)]
        return torch.cat(parts).to(self.values.device)

    def norms(self) -> Tensor:
        """Return the norm of each adapter's gradient, [adapters]."""
        norms: Tensor = torch.linalg.vector_norm(self.grads, dim=1)
        return norms

    @torch.no_grad()
    def adamw(self, step: int, rates: Sequence[float], decays: Sequence[float], scales: Tensor) -> None:
        """Take one step of AdamW (arXiv 1711.05101), as ``torch.optim.AdamW`` does.

        Args:
            step: Number of the step, from 1.
            rates: Learning rate of each adapter.
            decays: Weight decay of each adapter.
            scales: What each adapter's gradient is divided by, in place, [adapters].
        """
        whole = [(slice(None), True)]
        for row, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
            for kind in (True, False):
                runs = [here for here, decayed in (self._runs if decay else whole) if decayed == kind]
                arrays = (self.values, self.grads, self.means, self.squares)
                values, grads, means, squares = ([each[row, here] for here in runs] for each in arrays)
                adamw(
                    values,
                    grads,
                    means,
                    squares,
                    [],
                    list(torch.full((len(runs),), step - 1.0, device=scales.device).unbind()),
                    fused=True,
                    grad_scale=scales[row],
                    amsgrad=False,
                    beta1=BETAS[0],
                    beta2=BETAS[1],
                    lr=rate,
                    weight_decay=decay if kind else 0.0,
                    eps=EPSILON,
                    maximize=False,
                )

    def state(self) -> dict[str, Tensor]:
        """Return what a training needs to go on: numbers and moments."""
        return {"values": self.values, "means": self.means, "squares": self.squares}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put what :meth:`state` returned back."""
        for name, held in self.state().items():
            held.copy_(state[name])
