"""Rows computed by themselves, as PEFT computes them: for adapters that see more of a batch than a token.

A row has no padding, no mask and no positions of ours, so that PEFT puts its virtual tokens or finds its
invocation tokens where it would, and no other row beside it: some methods pool over the whole batch.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cme_bench.engines.hf.forward import CausalForward, base_model
from cme_bench.engines.hf.generate import RecomputingSession
from cme_bench.engines.hf.per_token import why_not_per_token
from cme_bench.util.errors import CmeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def why_alone(model: PreTrainedModel) -> str | None:
    """Return why rows must be computed by themselves; None if prefixes and padding change nothing."""
    from cme_bench.adapters.support import verdict

    if (reason := _rounds_together(model)) is not None:
        return reason

    if any(getattr(module, "pools_over_sequence", False) for module in model.modules()):
        return "an adapter pools over the sequence"
    configs = getattr(model, "peft_config", None) or {}
    for name in configs.keys() & set(active_adapters(model)):
        how = verdict(configs[name])
        if how.way != "shared":
            return how.reason
        if _is_users(configs[name]) and (found := why_not_per_token(model, base_model(model).dtype)):
            return found
    return None


def is_known_per_token(model: PreTrainedModel) -> bool:
    """Return whether the methods of all adapters are known to update each token by itself, in the layers of
    the bare model: what a trial of that found of rows beside each other is true with them."""
    configs = (getattr(model, "peft_config", None) or {}).values()
    others = any(_is_users(config) or getattr(config, "layer_replication", None) for config in configs)
    return not others and why_alone(model) is None


def _rounds_together(model: Any) -> str | None:
    """Return why a quantised layer gives a row other values beside other rows; None if none does."""
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt" and module.state.threshold > 0:
            return "LLM.int8() looks for outliers in all tokens of a batch together"
        rounded = getattr(getattr(module, "quantization_scheme", None), "input_activations", None)
        if rounded is not None and rounded.dynamic and getattr(rounded.strategy, "value", "") == "tensor":
            return "the model's layers round all tokens of a batch by one scale"
    return None


def alone_session(model: PreTrainedModel) -> type[AloneSession | RecomputedSession]:
    """Return what decodes a row by itself: with a cache where PEFT's own methods can, else without."""
    from cme_bench.adapters.support import verdict

    configs = getattr(model, "peft_config", None) or {}
    active = [configs[name] for name in configs.keys() & set(active_adapters(model))]
    anew = any(_is_users(config) or not verdict(config).cached for config in active)
    return RecomputedSession if anew else AloneSession


def _is_users(config: Any) -> bool:
    """Whether an adapter's method is neither this package's nor PEFT's."""
    from cme_bench.adapters.registry import method_of

    method = method_of(config)
    return method is not None and method.code is not None


def active_adapters(model: Any) -> list[str]:
    """Return the names of the adapters that compute; none for a model without."""
    from cme_bench.adapters.xlora import is_xlora

    configs = getattr(model, "peft_config", None)
    if not configs:
        return []
    if outer := [name for name, config in configs.items() if is_xlora(config)]:
        return outer  # PEFT names its experts as active
    active = getattr(model, "active_adapters", [])
    try:
        return list(active() if callable(active) else active)
    except ValueError:  # transformers' own, where an adapter was there and was taken off
        return []


def adapter_positions(model: Any) -> int:
    """Return how many positions of a model its active adapters take for virtual tokens."""
    from cme_bench.adapters.support import virtual_tokens

    configs = getattr(model, "peft_config", None) or {}
    return sum(virtual_tokens(configs[name]) for name in configs.keys() & set(active_adapters(model)))


class AloneSession:
    """Decode one row with PEFT's own forward. A :class:`generate.DecodingSession`.

    Virtual tokens lie in the cache after the first feed, so later ones go to the base model. An activated
    adapter goes on for the tokens that follow a prompt in which its invocation tokens were found.
    """

    def __init__(self, forward: CausalForward) -> None:
        self._forward = forward
        self._cache: Any = None
        self._more: dict[str, Any] = {}
        self.device = forward.device

    def feed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """As the protocol says, for one row without padding."""
        first = self._cache is None
        with self._forward.seeing(ids) if first else contextlib.nullcontext():
            logits, self._cache = self._forward.alone(
                ids, keep=1, cache=self._cache, more=self._more, use_cache=True
            )
        if self._cache is None:
            raise CmeError("the model has no cache that this adapter could generate with; use another base")
        if first:
            self._more = self._after(ids)
        return logits[:, -1]

    def can_select(self, kept: int) -> bool:
        return False

    def select(self, kept: Tensor) -> None:
        raise NotImplementedError("a session of one row")

    def _after(self, ids: Tensor) -> dict[str, Any]:
        """Return what later feeds pass beside their tokens."""
        model: Any = self._forward.model
        if getattr(getattr(model, "active_peft_config", None), "alora_invocation_tokens", None) is None:
            return {}
        from peft.tuners.lora.variants import calculate_alora_offsets

        offsets = calculate_alora_offsets(model.peft_config, model.active_adapter, ids)
        return {"alora_offsets": [offset and 1 for offset in offsets]}


class RecomputedSession(RecomputingSession):
    """Decode one row by a plain forward of all of it at every step."""

    def last_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        with self._forward.seeing(ids):
            logits, _ = self._forward.alone(ids, keep=1)
        return logits[:, -1]

    def can_select(self, kept: int) -> bool:
        return False


class SeenSession(RecomputingSession):
    """Decode one row with images by the model's own forward of all of it, from pixels, at every step."""

    def last_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self._forward.own(ids, keep=1)[:, -1]

    def can_select(self, kept: int) -> bool:
        return False
