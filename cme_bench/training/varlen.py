"""Attention over packs by where their examples begin: none is compared with another, and no mask is made.

torch's variable-length attention on a GPU that has it; elsewhere each example by itself, which is the
reference for it.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from cme_bench.training.each_example import one_by_one, with_as_many_heads
from cme_bench.training.short_attention import short_attention, suits

VARLEN = "cme_bench_varlen"
"""The name under which transformers knows it."""
_LONGEST = "_longest_example"
"""Where a model's config says how long the examples of its packs are at most."""


def bound_examples(model: PreTrainedModel, longest: int | None) -> None:
    """Tell a model's attention how many tokens an example has at most, so that it looks no further.

    None: as many as a row.
    """
    setattr(model.config, _LONGEST, longest)


def looks_apart(model: PreTrainedModel) -> bool:
    """Return whether attention looks at each example of a pack alone, however long the pack."""
    return bool(model.config._attn_implementation == VARLEN)


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch has variable-length attention for this device and dtype."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return callable(varlen_attn) and torch.cuda.get_device_capability(device) >= (8, 0)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    starts: Tensor | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Return causal attention within each example, [rows, length, heads, width], as transformers asks.

    Args:
        module: The model's attention layer.
        query: [rows, heads, length, width]; keys and values may have fewer heads.
        key: As the query.
        value: As the query.
        attention_mask: Not used.
        scaling: Factor on the scores.
        starts: Of the examples in the flattened rows, int32 [examples + 1]; without it each row is one.
        sliding_window: Most tokens that one looks back on, itself included.
        more: What other attentions take.

    Raises ValueError for scores that are capped.
    """
    if more.get("softcap") is not None:
        raise ValueError("variable-length attention caps no scores")
    rows, heads, length, width = query.shape
    query, key, value = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    longest = length
    if starts is None:
        starts = torch.arange(rows + 1, dtype=torch.int32, device=query.device) * length
    else:
        longest = getattr(getattr(module, "config", None), _LONGEST, None) or length
    if sliding_window is None and suits(query, longest):
        out = short_attention(query, key, value, starts, longest, scaling)
    else:
        run = _on_gpu if query.is_cuda else one_by_one
        out = run(query, key, value, starts, longest, scaling, sliding_window)
    return out.view(rows, length, heads, width), None


@functools.cache
def _varlen_attn() -> tuple[Any, frozenset[str]]:
    """Return torch's function and the names of its arguments, which changed with its versions."""
    from torch.nn.attention import varlen

    run: Any = varlen.varlen_attn
    return run, frozenset(inspect.signature(run).parameters)


def _on_gpu(  # noqa: PLR0917
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None = None,
) -> Tensor:
    flat = [query, key, value]
    run, known = _varlen_attn()
    back = -1 if window is None else window - 1
    causal: dict[str, Any] = {"window_size": (back, 0)} if "window_size" in known else {"is_causal": True}
    if "scale" in known:
        causal["scale"] = scaling
    if "enable_gqa" in known:
        causal["enable_gqa"] = True
    else:
        flat = with_as_many_heads(flat)
    out: Tensor = run(*flat, starts, starts, longest, longest, **causal)
    return out


AttentionInterface.register(VARLEN, attention)
