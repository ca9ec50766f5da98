"""Does the adapter do anything? An adapter that is all zero, or was never applied, scores exactly like its
base."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor

from cme_bench.adapters.errors import AdapterError


@torch.no_grad()
def check_liveness(model: PeftModel, input_ids: Tensor, attention_mask: Tensor | None = None) -> float:
    """The greatest absolute difference between the logits with and without the active adapter.

    Args:
        model: A causal language model with an active adapter; its training mode is restored afterwards.
        input_ids: (batch, length) token ids on the model's device.
        attention_mask: (batch, length), 0 for padding, which is left out of the comparison; None if there is
            none.

    Raises AdapterError, naming the adapter, if no logit differs, or if one is not finite.
    """
    training = model.training
    model.eval()
    try:
        with_adapter = model(input_ids=input_ids, attention_mask=attention_mask).logits
        with model.disable_adapter():
            without = model(input_ids=input_ids, attention_mask=attention_mask).logits
    finally:
        model.train(training)
    difference = (with_adapter.float() - without.float()).abs()
    if attention_mask is not None:
        difference = difference[attention_mask.bool()]
    greatest = float(difference.max())
    names = ", ".join(repr(name) for name in model.active_adapters)
    if not torch.isfinite(difference).all():
        raise AdapterError(f"adapter {names} gives logits that are not finite")
    if greatest == 0.0:
        raise AdapterError(unchanged(names))
    return greatest


def unchanged(names: str) -> str:
    """The sentence for an adapter that does nothing."""
    return (
        f"adapter {names} changes no logit: it was not applied, "
        "or all its up-projections are zero (untrained?)"
    )
