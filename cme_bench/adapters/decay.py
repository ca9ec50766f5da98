"""Which adapter parameters weight decay must leave alone."""

from __future__ import annotations

from torch import nn

from cme_bench.adapters.registry import methods


def no_decay_names(model: nn.Module) -> set[str]:
    """Return the names (as in ``named_parameters``) that the methods register as ``no_decay``.

    TeamLoRA's interaction matrix M is one: decay would pull its diagonal, which starts at 1, to 0, and with
    it the whole adapter.
    """
    parts = {part for method in methods() for part in method.no_decay}
    return {name for name, _ in model.named_parameters() if any(f".{part}." in name for part in parts)}


def decayed_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters that weight decay applies to: the matrices, without biases and what
    :func:`no_decay_names` returns."""
    left = no_decay_names(model)
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and not name.endswith("bias") and name not in left
    ]
