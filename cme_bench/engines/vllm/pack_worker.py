"""vLLM's worker, made to compute packs: many questions in one forward, every shared prefix once.

The model is vLLM's own, with its kernels and the plugin's adapters. Only its attention layers are replaced
for the forward: they neither read nor write vLLM's cache.
"""

from __future__ import annotations

import functools
import inspect
import pickle
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cme_bench.engines.hf.attention import AttentionCall
from cme_bench.engines.hf.copies import to_device
from cme_bench.engines.hf.pack_forward import Pending, Reads, reads_later
from cme_bench.engines.hf.tree_attention import KeptPrefix, PackAttention, SequenceAttention
from cme_bench.engines.hf.tree_kernel import Factors
from cme_bench.engines.packs import PackSequence
from cme_bench.vllm_plugin.worker import ExtendedWorker

_PLAIN_CACHES = frozenset({"auto", "float32", "bfloat16", "float16"})


class PackWorker(ExtendedWorker):
    """Mixed into vLLM's worker class."""

    if TYPE_CHECKING:
        vllm_config: Any
        device: torch.device

    def why_no_packs(self) -> str:
        """Return why this model's packs cannot be computed; "" if they can be tried."""
        from vllm.config import CompilationMode

        parallel = self.vllm_config.parallel_config
        if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
            return "several processes share the model"
        mode = self.vllm_config.compilation_config.mode
        plain = mode != CompilationMode.STOCK_TORCH_COMPILE and _skips_compiled()
        if mode != CompilationMode.NONE and not plain:
            return "the model is compiled, and this vLLM computes it in no other way"
        layers = attention_layers(self.get_model())
        if not layers:
            return "the model has no attention layers of vLLM's kind"
        return next(filter(None, map(unusual, layers)), "")

    def parameters(self) -> int:
        """Return the number of the model's parameters."""
        return sum(parameter.numel() for parameter in self.get_model().parameters())

    @torch.inference_mode()
    def start_pack(self, packed: bytes, *, first: bool) -> None:
        """Start computing a pickled ``PackSequence``; they must come in their order.

        The ``first`` one drops what was started for others and never read.
        """
        if first:
            self._kept_prefix, self._started = KeptPrefix(), deque[Pending]()
        self._started.append(self._computing(pickle.loads(packed)))

    def pack_reads(self) -> Reads:
        """Wait for the pack that was started longest ago; return its reads."""
        return self._started.popleft()()

    def _computing(self, pack: PackSequence) -> Pending:
        from vllm.forward_context import set_forward_context

        model, device, kept = self.get_model(), self.device, self._kept_prefix
        kernel = Factors.of(self.vllm_config.model_config.dtype)
        attention = SequenceAttention([PackAttention(p, kept, device, kernel=kernel) for p in pack.packs])
        places = pack.reads[0]
        plainly = {"skip_compiled": True} if _skips_compiled() else {}
        with (
            kept.all_or_nothing(pack.packs),
            set_forward_context(None, self.vllm_config, num_tokens=pack.n_tokens, **plainly),
            _attending(model, attention),
        ):
            hidden = model(to_device(pack.tokens, device), to_device(pack.positions, device), None)
        if not len(places):
            return list
        return reads_later(model.compute_logits(hidden[to_device(places, device)]), pack)


@functools.cache
def _skips_compiled() -> bool:
    """Tell whether this vLLM computes a compiled model without its compiled code, if it is asked to."""
    from vllm.forward_context import set_forward_context

    return "skip_compiled" in inspect.signature(set_forward_context).parameters


def attention_layers(model: nn.Module) -> list[Any]:
    """Return the layers of a model of vLLM by which tokens see others, of whatever kind."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    return [module for module in model.modules() if isinstance(module, AttentionLayerBase)]


def unusual(layer: Any) -> str:
    """Return what of such a layer packs do not compute; "" if nothing.

    A trial of short rows would not see it: chunks and windows are longer.
    """
    from vllm.model_executor.layers.attention import Attention

    if type(layer) is not Attention:  # subclasses see other tokens, and Mamba's layers are none
        return f"it has layers of the kind {type(layer).__name__}"
    impl = layer.impl
    found = {
        "a side to which it looks ahead": layer.attn_type != "decoder",
        "a window": getattr(layer, "sliding_window", None) is not None,
        "soft-capped scores": bool(getattr(impl, "logits_soft_cap", None)),
        "ALiBi": getattr(impl, "alibi_slopes", None) is not None,
        "sinks": getattr(impl, "sinks", None) is not None,
        "keys of another layer": getattr(layer, "kv_sharing_target_layer_name", None) is not None,
        "a quantised cache": layer.kv_cache_dtype not in _PLAIN_CACHES,
    }
    return next((f"its attention has {what}" for what, there in found.items() if there), "")


@contextmanager
def _attending(model: nn.Module, attention: SequenceAttention) -> Iterator[None]:
    """Have all attention layers of ``model`` compute by ``attention`` within the context."""
    layers = attention_layers(model)
    for layer in layers:
        layer.forward = functools.partial(_attend, layer, attention)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _attend(layer: Any, attention: SequenceAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Map [n, heads * size] of each to [n, heads * size]."""

    def heads(states: Tensor, count: int) -> Tensor:
        return states.reshape(1, len(states), count, -1).transpose(1, 2)

    call = AttentionCall(
        layer,
        heads(query, layer.num_heads),
        heads(key, layer.num_kv_heads),
        heads(value, layer.num_kv_heads),
        scaling=layer.impl.scale,
    )
    return attention(call)[0].reshape(len(query), -1).to(query.dtype)
