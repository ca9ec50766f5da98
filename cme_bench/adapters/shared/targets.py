"""Which linear layers an adapter is put on when the user names none."""

from __future__ import annotations

from torch import nn

from cme_bench.adapters.shared.linears import is_linear

_GATED_FFN = ("gate_proj", "up_proj", "down_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")

FFN: dict[str, tuple[str, ...]] = {
    "llama": _GATED_FFN,
    "mistral": _GATED_FFN,
    "qwen2": _GATED_FFN,
    "qwen3": _GATED_FFN,
    "gemma": _GATED_FFN,
    "gemma2": _GATED_FFN,
    "gemma3": _GATED_FFN,
    "gemma3_text": _GATED_FFN,
    "phi3": ("gate_up_proj", "down_proj"),
    "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h"),
    # The attention's output has the name of the second: each is told by the name of its block.
    "gpt2": ("mlp.c_fc", "mlp.c_proj"),
}
"""Feed-forward linears by transformers ``model_type``."""

ATTENTION: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(FFN, _ATTENTION),
    "phi3": ("qkv_proj", "o_proj"),
    "gpt_neox": ("query_key_value", "dense"),
    "gpt2": ("attn.c_attn", "attn.c_proj"),
}
"""Attention projections by transformers ``model_type``."""


def default_targets(model_type: str | None, attention: bool = False) -> tuple[str, ...] | None:
    """Return the feed-forward linears of an architecture, with the attention projections if asked; None if
    unknown."""
    if model_type is None or model_type not in FFN:
        return None
    return FFN[model_type] + (ATTENTION[model_type] if attention else ())


def candidates(model: nn.Module) -> list[str]:
    """Return the distinct last names of the model's linear layers, output embedding apart, sorted."""
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    return sorted(
        {
            name.removesuffix(".base_layer").rpartition(".")[2]
            for name, module in model.named_modules()
            if is_linear(module) and module is not head
        }
    )
