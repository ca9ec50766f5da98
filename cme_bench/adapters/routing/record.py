"""Router statistics: how the experts share the tokens, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cme_bench.adapters.routing.hooks import Heard, routing_hooks


@dataclass(frozen=True)
class RouterStats:
    """Router statistics of one layer over the tokens heard, padding left out.

    Attributes:
        layer: Name of the adapted linear in the base model.
        adapter: Name of the adapter.
        tokens: Number of tokens.
        phi: Mean softmax weight of each expert; sums to 1.
        omega: Mean share of each expert after M (and renormalisation, if any), before any factor k; equals
            ``phi`` where there is no M.
        entropy: Mean over tokens of the entropy of phi, in nats; log k if the router is undecided.
        top1: Share of tokens for which each expert has the largest omega; sums to 1.
    """

    layer: str
    adapter: str
    tokens: int
    phi: tuple[float, ...]
    omega: tuple[float, ...]
    entropy: float
    top1: tuple[float, ...]


class RouterRecord:
    """Running sums of router statistics, kept on the layers' devices until ``stats`` is asked for."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Tensor] = {}

    def _hear(self, heard: Heard) -> None:
        """Add (1, entropy, phi, omega, top-1), 2 + 3k numbers, summed over the tokens that count."""
        with torch.no_grad():
            k = heard.routing.phi.shape[-1]
            phi, omega = (part.detach().reshape(-1, k) for part in heard.routing)
            entropy = torch.special.entr(phi).sum(dim=-1, keepdim=True)
            top1 = nn.functional.one_hot(omega.argmax(dim=-1), k).to(phi.dtype)
            rows = torch.cat([torch.ones_like(entropy), entropy, phi, omega, top1], dim=-1).double()
            if heard.mask is not None:
                # Left out, not weighed by 0: a padded token can hold NaN (its attention row is empty).
                rows = rows[heard.mask.reshape(-1).to(rows.device)]
            key = (heard.layer, heard.adapter)
            row = rows.sum(dim=0)
            self._sums[key] = self._sums[key] + row if key in self._sums else row

    def stats(self) -> list[RouterStats]:
        """Return the statistics so far: one entry for each layer and adapter that saw a token, in order of
        use."""
        found = []
        for (layer, adapter), sums in self._sums.items():
            tokens, entropy, *rest = sums.tolist()
            if tokens:
                k = len(rest) // 3
                means = [value / tokens for value in rest]
                phi, omega, top1 = (tuple(means[i * k : (i + 1) * k]) for i in range(3))
                found.append(RouterStats(layer, adapter, int(tokens), phi, omega, entropy / tokens, top1))
        return found


@contextmanager
def record_router(model: nn.Module) -> Iterator[RouterRecord]:
    """Record router statistics over all forward passes in the context, ``generate`` included.

    Example::

        with record_router(model) as record:
            model(input_ids=ids, attention_mask=mask)
        for layer in record.stats(): ...

    Raises AdapterError if the model has no routed layer.
    """
    record = RouterRecord()
    with routing_hooks(model, record._hear):
        yield record
