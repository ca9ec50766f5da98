"""Which adapter parameters weight decay must leave alone."""

from __future__ import annotations

from torch import nn


def no_decay_names(model: nn.Module) -> set[str]:
    """Names (as in ``named_parameters``) of the interaction matrices M.

    Decay would pull their diagonal, which starts at 1, to 0, and with it the whole adapter.
    """
    return {name for name, _ in model.named_parameters() if ".teamlora_interaction." in name}
