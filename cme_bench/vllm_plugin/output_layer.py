"""Logits with the precision that the output layer's product has, in place of the model's dtype.

vLLM rounds every logit to the model's dtype: a bfloat16 between 16 and 32 has steps of 0.125, so choices tie
and the first one wins. Here weights and hidden states stay in that dtype, and the product is summed and kept
in float32; soft cap, scale, gathering over tensor-parallel ranks and sampling then are float32 as well.

All of vLLM's logits, base model's and adapters', tied or not, of both of its runners, come from one method,
``LogitsProcessor._apply_head``, outside of what is compiled or captured: ``exact`` puts ours there.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from cme_bench.util.exact_logits import NARROW, is_rounded, linear
from cme_bench.vllm_plugin.spec import QUANT_METHOD

UNITS = 512
"""Unit vectors that a quantised layer is asked for at a time."""
TRUSTED = 1e-2
"""Relative error by norm up to which a quantised layer is its weight: it rounds its answers, no more."""


class Head:
    """Stands in the place of ``own``, a processor's ``_apply_head``.

    A layer whose weight is quantised is multiplied out once. Where that is not what it computes, or there is
    no memory for it, the layer answers itself, rounded. ``exact``: whether the last answer was not. A hidden
    state that left float16's range has logits that are NaN, which is looked for wherever they are used.
    """

    def __init__(self, own: Any) -> None:
        self.own = own
        self.exact: bool | None = None
        self._dense: dict[int, Tensor | None] = {}

    def __call__(self, lm_head: Any, hidden_states: Tensor, embedding_bias: Tensor | None) -> Tensor:
        if hidden_states.dtype not in NARROW:
            self.exact = True
            logits: Tensor = self.own(lm_head, hidden_states, embedding_bias)
            return logits
        if hidden_states.dtype == torch.float16:  # an infinite one would make logits infinite, and none NaN
            hidden_states = hidden_states.masked_fill(hidden_states.isinf(), torch.nan)
        weight = self._weight(lm_head, hidden_states)
        self.exact = weight is not None
        if weight is None:
            logits = lm_head.quant_method.apply(lm_head, hidden_states, bias=embedding_bias)
            return logits.float()
        return linear(hidden_states, weight, embedding_bias)

    def _weight(self, lm_head: Any, like: Tensor) -> Tensor | None:
        """Return ``(vocabulary of this rank, hidden)`` in the dtype of ``like``; None if there is no such."""
        if _is_plain(lm_head, like.dtype):
            weight: Tensor = lm_head.weight
            return weight
        if id(lm_head) not in self._dense:
            try:
                self._dense[id(lm_head)] = dense_weight(lm_head, like)
            except Exception:  # kernels of quantised layers raise anything; other ranks wait for this one
                self._dense[id(lm_head)] = None
        return self._dense[id(lm_head)]


def _is_plain(lm_head: Any, dtype: torch.dtype) -> bool:
    """Return whether the layer multiplies by its ``weight``. (A method that packs it leaves an empty one.)"""
    weight = getattr(lm_head, "weight", None)
    return (
        type(lm_head.quant_method) in (UnquantizedEmbeddingMethod, UnquantizedLinearMethod)
        and isinstance(weight, Tensor)
        and weight.dtype == dtype
        and weight.numel() > 0
    )


def dense_weight(lm_head: Any, like: Tensor) -> Tensor | None:
    """Return the weight by which a layer of any kind multiplies: what it answers to each unit vector.

    None if its answers to other vectors are not that product, because it quantises its input as well.
    """
    apply = functools.partial(lm_head.quant_method.apply, lm_head, bias=None)
    hidden = like.shape[-1]
    columns = []
    for start in range(0, hidden, UNITS):
        units = like.new_zeros(min(UNITS, hidden - start), hidden)
        units.diagonal(start).fill_(1)
        columns.append(apply(units).to(like.dtype).t())
    weight = torch.cat(columns, dim=1)
    generator = torch.Generator().manual_seed(0)
    trial = torch.randn(16, hidden, generator=generator).to(like)
    wanted, found = apply(trial).float(), linear(trial, weight)
    return weight if (found - wanted).norm() <= TRUSTED * wanted.norm() else None


def exact(processor: Any) -> None:
    """Have a processor compute logits in float32; twice changes nothing."""
    if not isinstance(processor._apply_head, Head):
        processor._apply_head = Head(processor._apply_head)


def exact_from_now(model: Any, probe: Tensor) -> str:
    """Make all logits of a model exact; return why they are rounded all the same, "" if they are not.

    ``probe``: a hidden state, ``(1, hidden)``, after which the logits are looked at. Where they cannot be
    computed so, for want of memory say, the model is left as it was.
    """
    found = [module for module in model.modules() if isinstance(module, LogitsProcessor)]
    found = [processor for processor in found if hasattr(processor, "_apply_head")]
    for processor in found:
        exact(processor)
    try:
        logits = model.compute_logits(probe)
    except Exception as error:  # model classes and quantised layers raise anything
        for processor in found:
            processor._apply_head = processor._apply_head.own
        return f"{type(error).__name__} ({str(error).splitlines()[0] if str(error) else 'no reason given'})"
    answers = {processor._apply_head.exact for processor in found} - {None}
    if not answers:
        return f"{type(model).__name__} has an output layer of its own"
    return rounding(logits, probe.dtype) if answers == {True} else "its output layer is quantised"


def rounding(logits: Tensor | None, dtype: torch.dtype) -> str:
    """Return that logits are rounded to ``dtype``, if so, else "". A rank that gets none knows of nothing."""
    if logits is None or not logits.any() or not is_rounded(logits, dtype):
        return ""
    return f"it makes them {str(dtype).removeprefix('torch.')} after its output layer"


@LogitsProcessor.register_oot
class ServedLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # vllm carries no types here
    """vLLM's, which is exact from the start where the plugin's own config runs the model.

    So are folders that ``vllm serve`` serves. Of any other model nothing changes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = get_current_vllm_config().quant_config
        if config is not None and config.get_name() == QUANT_METHOD:
            exact(self)
