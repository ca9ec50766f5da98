"""Does the adapter do anything? An adapter that is all zero, or was never applied, scores exactly like its
base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor

from cme_bench.adapters.errors import AdapterError
from cme_bench.util.errors import CmeError, first_line
from cme_bench.util.exact_logits import exact_logits

_TRAINED_TOKENS = 16
_CODE_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""Errors of a layer with settings, or on weights, that it cannot compute."""


@torch.no_grad()
def check_liveness(
    model: PeftModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    name: str | None = None,
    more: Mapping[str, Tensor] = MappingProxyType({}),
) -> float:
    """Return the greatest absolute difference between the logits with and without the active adapter.

    Args:
        model: A causal language model with an active adapter. Its training mode, and which parameters are
            trained, are restored afterwards: PEFT trains an adapter that was off for a while.
        input_ids: (batch, length) token ids on the model's device.
        attention_mask: (batch, length), 0 for padding, which is left out of the comparison; None if there is
            none.
        name: The adapter's name for messages; default: the one it has in the model.
        more: Further arguments of the model's forward, such as the pixels of images.

    Virtual tokens that an adapter puts before the input are left out. Raises AdapterError, naming the
    adapter, if no logit differs, if one is not finite, or if the adapter's code fails on this base.
    """
    names = ", ".join(map(repr, model.active_adapters)) if name is None else repr(name)
    training = model.training
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    try:
        with exact_logits(model):  # rounded logits would hide a small adapter
            fed = {"input_ids": input_ids, "attention_mask": attention_mask, **more}
            with_adapter = model(**fed).logits
            with model.disable_adapter():
                without = model(**fed).logits
    except (torch.OutOfMemoryError, CmeError):
        raise
    except _CODE_ERRORS as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise AdapterError(f"adapter {names} cannot be computed on this base ({why})") from error
    finally:
        model.train(training)
        for parameter, was in trained:
            if parameter.requires_grad != was:
                parameter.requires_grad_(was)
    difference = (with_adapter[:, -without.shape[1] :].float() - without.float()).abs()
    if attention_mask is not None:
        difference = difference[attention_mask.bool()]
    greatest = float(difference.max())
    if not torch.isfinite(difference).all():
        raise AdapterError(f"adapter {names} gives logits that are not finite")
    if greatest == 0.0:
        raise AdapterError(unchanged(names))
    return greatest


def probing(config: PeftConfig, ids: Sequence[int]) -> list[int]:
    """Return ``ids`` and, after them, tokens without which the adapter does nothing: those it trained, or
    those that call it."""
    trained = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or ()
    if isinstance(trained, dict):
        trained = [index for indices in trained.values() for index in indices]
    invoking = getattr(config, "alora_invocation_tokens", None) or ()
    return [*ids, *list(trained)[:_TRAINED_TOKENS], *invoking]


def unchanged(names: str) -> str:
    """Return the sentence for an adapter that does nothing."""
    return (
        f"adapter {names} changes no logit: it was not applied, "
        "or all its up-projections are zero (untrained?)"
    )
