"""The linear method of layers that hold several adapters: the base's product, then every token's own update.

The base's weight is made, loaded and repacked by the method that it would have without adapters, quantised
or not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.config import CompilationMode, get_current_vllm_config
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.linear import (
    WEIGHT_LOADER_V2_SUPPORTED,
    LinearMethodBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)

from cme_bench.vllm_plugin.method import FUSION_SWITCH, is_partial
from cme_bench.vllm_plugin.quantised import GatedQuantisedMethod
from cme_bench.vllm_plugin.slot_form import fitted
from cme_bench.vllm_plugin.slot_index import SlotIndex
from cme_bench.vllm_plugin.slot_reference import Stack, alone, by_mask, by_rows
from cme_bench.vllm_plugin.spec import GatedSpec

_BUFFERS = ("down", "up", "router", "interaction", "settings")


class SlottedMethod(GatedQuantisedMethod):
    """One layer's weight, which ``inner`` computes, and a stack of adapters in buffers of the layer.

    ``spec``: the form that every slot has. ``index``: which slot each token belongs to; all layers share it.
    """

    def __init__(
        self, inner: LinearMethodBase, spec: GatedSpec, members: list[str], index: SlotIndex
    ) -> None:
        super().__init__(inner, spec, members)
        self.index = index
        self.stack: Stack
        self._fused: Any = None  # slot_kernels, on CUDA
        self.silu = False
        """Whether the layer gives silu(gate) * up, since what does so after it was taken out of the model."""
        config = get_current_vllm_config()
        self._compiled = config.compilation_config.mode != CompilationMode.NONE

    def _register(self, layer: Any, device: torch.device | None) -> None:
        local_in, dtype = self._sizes
        layout = self.layout
        cpu = torch.empty(0, device=device).device.type == "cpu"
        self.stack = Stack.empty(
            self.index.n_slots,
            local_in,
            layout.d_out,
            layout.spans,
            self.spec,
            dtype,
            torch.float32 if cpu else dtype,
            device,
        )
        for name in _BUFFERS:
            layer.register_buffer(f"gated_{name}", getattr(self.stack, name), persistent=False)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Let the base's method repack its weight, and see whether the kernels serve the layer."""
        super().process_weights_after_loading(layer)
        if not self.stack.down.is_cuda or os.environ.get(FUSION_SWITCH, "1") == "0":
            return
        from cme_bench.vllm_plugin import slot_kernels, trials

        down = self.stack.down
        if slot_kernels.why_not(self.stack) is None and trials.slots_work(self.spec, down.dtype, down.device):
            self._fused = slot_kernels.Slotted(self.stack, self.index, is_partial(layer))

    @property
    def can_silu(self) -> bool:
        """Tell whether the layer could compute silu(gate) * up."""
        plain = self._fused is not None and type(self.inner) is UnquantizedLinearMethod
        return plain and bool(self._fused.has_halves)

    def place_slot(self, layer: Any, slot: int, spec: GatedSpec, tensors: Mapping[str, Tensor]) -> None:
        """Copy an adapter of ``spec`` into a slot, in place: captured graphs see it."""
        for name, tensor in fitted(tensors, spec, self.spec).items():
            getattr(self.stack, name)[slot - 1].copy_(tensor.reshape(getattr(self.stack, name)[0].shape))

    def place(self, layer: Any, tensors: Mapping[str, Tensor]) -> None:
        """Raise ValueError: adapters go into slots."""
        raise ValueError("this engine holds adapters in slots; a request names the one that answers it")

    def clear(self, layer: Any) -> None:
        """Do nothing: a request that names no adapter is answered by the base model."""

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map (..., local_in) to (..., local_out)."""
        if self._fused is None or type(self.inner) is not UnquantizedLinearMethod:
            return super().apply(layer, x, bias)
        y = self._fused.linear(self.tokens_of(x), layer.weight, silu=self.silu)
        y = y if bias is None else y + bias
        result: Tensor = y.reshape(*x.shape[:-1], y.shape[-1])
        return result

    def updated(self, layer: Any, y: Tensor, tokens: Tensor) -> Tensor:
        """Return ``y`` (tokens, local_out) of the base plus every token's own update."""
        if self._fused is not None:
            return self._fused.updated(y, tokens)  # type: ignore[no-any-return]
        if self._compiled:
            return by_mask(y, tokens, self.index.slots[: len(tokens)], self.stack, _summed(layer))
        return by_rows(y, tokens, self.index.groups, self.stack, _summed(layer))


@register_weight_loader_v2_supported_method
class SlottedMethodV2(SlottedMethod):
    """The same over a method whose weights know how they are loaded: vLLM tells them apart by class name."""


def _summed(layer: Any) -> Callable[[Tensor], Tensor]:
    """Return what adds up a layer's logits over the ranks that have a slice of its input each."""
    if not is_partial(layer):
        return alone
    return lambda logits: tensor_model_parallel_all_reduce(logits.contiguous())


def slotted(inner: LinearMethodBase, spec: GatedSpec, members: list[str], index: SlotIndex) -> SlottedMethod:
    """Return the method of a layer with slots that ``inner`` would compute alone."""
    second = type(inner).__name__ in WEIGHT_LOADER_V2_SUPPORTED
    kind = SlottedMethodV2 if second else SlottedMethod
    return kind(inner, spec, members, index)


def index_of_engine() -> SlotIndex:
    """Return an index for the engine that is being made: as many slots as it has LoRAs in a step."""
    config = get_current_vllm_config()
    if config.lora_config is None:
        raise ValueError(
            "this model holds adapters in slots, which requests name as they name LoRAs: give --enable-lora "
            "and --max-loras"
        )
    return SlotIndex(config.scheduler_config.max_num_batched_tokens, config.lora_config.max_loras)
