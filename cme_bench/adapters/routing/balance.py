"""The load-balance loss on the experts' shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.routing.hooks import Heard, routing_hooks
from cme_bench.adapters.routing.top_k import switch_penalty


def balance_penalty(omega: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``mean_e (mean_tokens omega_e - 1/k)^2``, the authors' auxiliary loss of 2024-08.

    Args:
        omega: (..., k), the experts' shares before any factor k.
        mask: True for tokens that count; None for all. Without any such token the penalty is that of zero
            shares.

    Returns:
        A scalar, at least 0; 0 if every expert has the mean share 1/k.
    """
    k = omega.shape[-1]
    if mask is None:
        load = omega.reshape(-1, k).mean(dim=0)
    else:
        weight = mask.to(omega.device, omega.dtype).unsqueeze(-1)
        load = (omega * weight).reshape(-1, k).sum(dim=0) / weight.sum().clamp_min(1.0)
    return (load - 1.0 / k).square().mean()


class BalanceTape:
    """The routings of the forward passes since the last call of ``loss``."""

    def __init__(self) -> None:
        self._heard: list[Heard] = []

    def hear(self, heard: Heard) -> None:
        """Add one forward pass through one layer; those without gradients are left out."""
        if torch.is_grad_enabled():
            self._heard.append(heard)

    def forget(self) -> None:
        """Leave out what was heard since the last call of ``loss``."""
        self._heard = []

    def loss(self, coefficient: float | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Return the mean penalty over the heard layers, times ``coefficient``; add it to the training loss.

        MixLoRA's is one penalty over the tokens of all layers together.

        Args:
            coefficient: Weight; None takes each adapter's ``balance_coefficient``.
            mask: (batch, length), 1 for tokens that count; None takes what each forward pass was given.

        Raises AdapterError if no forward pass with gradients was heard, as under reentrant gradient
        checkpointing, where such a loss would have no gradient.
        """
        heard, self._heard = self._heard, []
        if not heard:
            raise AdapterError(
                "no routing with gradients was heard: run the forward pass inside balance_tape, "
                "and use non-reentrant gradient checkpointing (use_reentrant=False)"
            )
        device = heard[0].routing.omega.device
        penalties = [
            (h.config.balance_coefficient if coefficient is None else coefficient)
            * balance_penalty(h.routing.omega, h.mask if mask is None else mask).to(device)
            for h in heard
            if h.config.balance == "shares"
        ]
        total = torch.stack(penalties).mean() if penalties else torch.zeros((), device=device)
        if together := [h for h in heard if h.config.balance == "switch"]:
            masks = [h.mask if mask is None else mask for h in together]
            weight = together[0].config.balance_coefficient if coefficient is None else coefficient
            total = total + weight * switch_penalty([h.routing for h in together], masks).to(device)
        return total


@contextmanager
def balance_tape(model: nn.Module) -> Iterator[BalanceTape]:
    """Collect routings for the load-balance loss; may stay open for a whole training.

    Example::

        with balance_tape(model) as tape:
            for batch in batches:
                (model(**batch).loss + tape.loss()).backward()

    Works under non-reentrant gradient checkpointing. Forward passes without gradients are left out. Raises
    AdapterError if the model has no routed layer.
    """
    tape = BalanceTape()
    with routing_hooks(model, tape.hear):
        yield tape
