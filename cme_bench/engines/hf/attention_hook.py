"""The attention of a transformers model, taken over: registered with transformers under ``NAME``.

The model runs its own code; only the attention function is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

from torch import Tensor, nn
from transformers import AttentionInterface

from cme_bench.engines.hf.attention import AttentionCall
from cme_bench.engines.hf.forward import CausalForward
from cme_bench.engines.hf.wide_states import for_attention

NAME = "cme_tree"
_IGNORED = frozenset({"position_ids", "use_cache", "cache_position"})
"""Arguments that say nothing which the attention function does not know."""

Attention: TypeAlias = Callable[[AttentionCall], Tensor]
"""The attention function of a model within ``attention_of``: it returns [rows, n, heads, size].

Float32 states of a 16-bit model come in float16, or as they are where its attribute ``takes_wide`` is true.
"""


class UnsupportedAttentionError(Exception):
    """The model asks its attention for something that cannot be shared; it runs row by row instead."""


_active: ContextVar[Attention] = ContextVar("cme_tree_attention")


def _tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    unknown = [
        name
        for name, given in others.items()
        if name not in _IGNORED and not (given is None or given is False)
    ]
    if others.get("is_causal", True) is False:
        unknown.append("sight of what comes after")
    if attention_mask is not None or dropout or unknown:
        raise UnsupportedAttentionError(
            f"attention with {', '.join(unknown) or 'a mask or dropout'} of its own"
        )
    dtype, attend = value.dtype, _active.get()
    if not getattr(attend, "takes_wide", False):
        query, key, value = (for_attention(states) for states in (query, key, value))
    call = AttentionCall(module, query, key, value, scaling=scaling, window=sliding_window, softcap=softcap)
    return attend(call).contiguous().to(dtype), None


AttentionInterface.register(NAME, _tree_attention)


@contextmanager
def attention_of(forward: CausalForward, attend: Attention) -> Iterator[None]:
    """Make the model of ``forward`` attend by ``attend`` within the context; it builds no masks of its own
    then."""
    before = [(config, config._attn_implementation) for config in forward.configs]
    token = _active.set(attend)
    try:
        for config, _ in before:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name
        _active.reset(token)
