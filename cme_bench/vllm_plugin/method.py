"""The linear method: vLLM's unquantised linear, plus the adapter's update."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from vllm.config import get_current_vllm_config
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.linear import (
    LinearBase,
    QKVParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)

from cme_bench.vllm_plugin.layout import Layout, plan_layout
from cme_bench.vllm_plugin.reference import add_up, gated_latent, shares, silu_and_mul
from cme_bench.vllm_plugin.spec import GatedSpec

FUSION_SWITCH = "CME_BENCH_VLLM_FUSION"
"""Environment variable: 0 turns the fused kernels off."""
_IN_ORDER = frozenset({"phi3"})
"""Model types whose checkpoints keep several linears as one in vLLM's order, one after the other. Elsewhere
heads are interleaved, for example, and vLLM reorders rows while it loads them; an adapter's rows would stay
behind."""


class GatedMethod:
    """One layer's adapter, in buffers of the layer:

    gated_down (parts * latent, local_in) and gated_up (local_out, k r) in the model's dtype; gated_router
    (parts * k, local_in) and gated_interaction (parts, k, k) in float32. They start as zeros: the adapter is
    then the identity. ``must_be_placed``: a layer that is used before its adapter was placed is an error.
    """

    def __init__(self, spec: GatedSpec, members: list[str], *, must_be_placed: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.members = members
        self.lacks_adapter = must_be_placed
        self.layout: Layout

    def make_room(
        self,
        layer: Any,
        local_in: int,
        local_outs: list[int],
        sizes: tuple[int, int],
        dtype: torch.dtype,
    ) -> None:
        """Plan the layer and register its buffers; ``sizes``: input and output of the whole linear."""
        _refuse_unreachable(layer, self.members, len(local_outs))
        self.layout = plan_layout(
            self.members,
            self.spec.modules,
            d_in=sizes[0],
            local_in=local_in,
            local_outs=local_outs,
            global_outs=_global_outputs(layer, local_outs, sizes[1]),
            rank=layer.tp_rank,
            world=layer.tp_size,
        )
        self._sizes = local_in, dtype
        self._register(layer, None)

    def _register(self, layer: Any, device: torch.device | None) -> None:
        """Give the layer buffers for an adapter of the spec, all zero."""
        spec, parts = self.spec, len(self.layout.parts)
        local_in, dtype = self._sizes
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "down": ((parts * spec.latent, local_in), dtype),
            "up": ((self.layout.d_out, spec.gated), dtype),
        }
        if spec.routed:
            shapes["router"] = ((parts * spec.experts, local_in), torch.float32)
        if spec.interaction:
            shapes["interaction"] = ((parts, spec.experts, spec.experts), torch.float32)
        for name, (shape, kind) in shapes.items():
            room = torch.zeros(shape, dtype=kind, device=device)
            layer.register_buffer(f"gated_{name}", room, persistent=False)

    def fit(self, layer: Any, spec: GatedSpec) -> None:
        """Make room for adapters of another shape, on modules that have room; it is the identity then.

        Neither captured graphs nor compiled code would see it.
        """
        buffers = [name for name, _ in layer.named_buffers(recurse=False) if name.startswith("gated_")]
        device = getattr(layer, buffers[0]).device
        for name in buffers:
            delattr(layer, name)
        self.spec = spec
        self._register(layer, device)

    def create_weights(  # noqa: PLR0917 - vLLM's signature
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Make the base's weight, and room for the adapter."""
        local, sizes = (input_size_per_partition, output_partition_sizes), (input_size, output_size)
        self.create_base(layer, *local, *sizes, params_dtype, **extra_weight_attrs)
        self.make_room(layer, *local, sizes, params_dtype)

    def create_base(self, layer: Any, *sizes: Any, **attributes: Any) -> None:
        """Make the base's weight; arguments as of ``create_weights``."""
        raise NotImplementedError

    def base_output(self, layer: Any, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """Return the base's product with (tokens, local_in)."""
        raise NotImplementedError

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map (..., local_in) to (..., local_out)."""
        tokens = self.tokens_of(x)
        y = self.updated(layer, self.base_output(layer, tokens, bias), tokens)
        result: Tensor = y.reshape(*x.shape[:-1], y.shape[-1])
        return result

    def place(self, layer: Any, tensors: Mapping[str, Tensor]) -> None:
        """Copy an adapter into the layer, in place: captured graphs and compiled code see it."""
        self.lacks_adapter = False
        for name, tensor in tensors.items():
            getattr(layer, f"gated_{name}").copy_(tensor)

    def clear(self, layer: Any) -> None:
        """Make the adapter the identity again: all of B zero."""
        layer.gated_up.zero_()

    def tokens_of(self, x: Tensor) -> Tensor:
        """Return (..., local_in) as (tokens, local_in). Raises RuntimeError if the adapter is not there."""
        if self.lacks_adapter:
            raise RuntimeError(f"{self.members[0]}: the adapter of this model was never loaded")
        return x.reshape(-1, x.shape[-1])

    def updated(self, layer: Any, y: Tensor, tokens: Tensor) -> Tensor:
        """Return ``y`` (tokens, local_out) of the base plus the adapter's update."""
        return add_up(y, self._gated(layer, tokens), layer.gated_up, self.layout.spans)

    def _gated(self, layer: Any, x: Tensor) -> Tensor:
        """Return (tokens, parts, k r). A row-parallel layer holds a slice of x. z may stay a partial sum,
        since the layer's output is summed over ranks anyway; the softmax needs the whole logits."""
        z = linear(x, layer.gated_down)
        if not self.spec.routed:
            return gated_latent(z, None, self.spec)
        if x.is_cuda:
            logits = linear(x, layer.gated_router.to(x.dtype)).float()
        else:
            logits = linear(x.float(), layer.gated_router)
        if is_partial(layer):
            logits = tensor_model_parallel_all_reduce(logits.contiguous())
        logits = logits.reshape(len(x), -1, self.spec.experts)
        interaction = layer.gated_interaction if self.spec.interaction else None
        return gated_latent(z, shares(logits, interaction, self.spec), self.spec)


@register_weight_loader_v2_supported_method
class GatedLinearMethod(GatedMethod, UnquantizedLinearMethod):  # type: ignore[misc]  # vllm carries no types here
    """One layer's base weight of full size and adapter. With fusion both lie in ``kernels.Store``."""

    supports_pre_processed_weights = False

    def __init__(self, spec: GatedSpec, members: list[str], *, must_be_placed: bool = False) -> None:
        super().__init__(spec, members, must_be_placed=must_be_placed)
        self.store: Any = None  # kernels.Store, on CUDA
        self.silu = False
        """Whether the layer gives silu(gate) * up, since what does so after it was taken out of the model."""
        self.total = False
        """Whether the layer sums up the ranks' outputs, in place of vLLM."""

    def create_base(self, layer: Any, *sizes: Any, **attributes: Any) -> None:
        """Make the base's weight as vLLM makes one that is not quantised."""
        UnquantizedLinearMethod.create_weights(self, layer, *sizes, **attributes)

    def base_output(self, layer: Any, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """Return what vLLM's own method computes."""
        output: Tensor = UnquantizedLinearMethod.apply(self, layer, tokens, bias)
        return output

    def process_weights_after_loading(self, layer: Any) -> None:
        """Move base weight and adapter into one matrix, on CUDA and unless switched off."""
        if self.store is None and self._fuses(layer):
            self._fuse(layer)
        super().process_weights_after_loading(layer)

    @property
    def can_silu(self) -> bool:
        """Tell whether the layer could compute silu(gate) * up, as far as one trial of the kernel says."""
        if self.store is None or not self.store.has_halves:
            return False
        from cme_bench.vllm_plugin.trials import silu_works

        weight = self.store.weight
        return silu_works(self.store.spec, weight.dtype, weight.device)

    def _fuses(self, layer: Any) -> bool:
        if not layer.weight.is_cuda or os.environ.get(FUSION_SWITCH, "1") == "0":
            return False
        from cme_bench.vllm_plugin import kernels

        layout = self.layout
        return kernels.why_not(self.spec, layout.spans, layout.d_out, layer.weight.dtype) is None

    def _fuse(self, layer: Any) -> None:
        from cme_bench.vllm_plugin import kernels
        from cme_bench.vllm_plugin.trials import launches_work

        launches_work(self.spec, layer.weight.dtype, layer.weight.device)
        self.store = kernels.Store.build(layer.weight.data, self.layout.spans, self.spec)
        layer.weight.data = self.store.weight
        for name in [name for name, _ in layer.named_buffers(recurse=False) if name.startswith("gated_")]:
            delattr(layer, name)
        layer.register_buffer("gated_matrix", self.store.matrix, persistent=False)
        if is_partial(layer) and layer.reduce_results and layer.bias is None:
            layer.reduce_results, self.total = False, True

    def fit(self, layer: Any, spec: GatedSpec) -> None:
        """Make room for adapters of another shape: the matrix is another, too."""
        if self.store is not None:
            layer.weight.data = self.store.weight.contiguous()
            if self.total:
                layer.reduce_results, self.total = True, False
            self.store = None
        super().fit(layer, spec)
        if self._fuses(layer):
            self._fuse(layer)

    def place(self, layer: Any, tensors: Mapping[str, Tensor]) -> None:
        """Copy an adapter into the layer's buffers, or into its matrix."""
        if self.store is None:
            super().place(layer, tensors)
            return
        self.lacks_adapter = False
        self.store.place(tensors["down"], tensors["up"], tensors.get("router"), tensors.get("interaction"))

    def clear(self, layer: Any) -> None:
        """Make the adapter the identity again: all of B zero."""
        if self.store is None:
            super().clear(layer)
        else:
            self.store.matrix[: self.layout.d_out, self.store.weight.shape[1] :].zero_()

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map (..., local_in) to (..., local_out)."""
        if self.store is None:
            y = super().apply(layer, x, bias)
            return silu_and_mul(y) if self.silu else y
        y = self.store.apply(self.tokens_of(x), partial=is_partial(layer), total=self.total, silu=self.silu)
        y = y if bias is None else y + bias
        result: Tensor = y.reshape(*x.shape[:-1], y.shape[-1])
        return result


def _refuse_unreachable(layer: Any, members: list[str], partitions: int) -> None:
    """Raise ValueError for a layer whose rows may be in another order than the adapter's, or whose weight
    vLLM multiplies by itself."""
    config = get_current_vllm_config().model_config
    kind = config.hf_config.model_type
    joined = isinstance(layer, QKVParallelLinear) or partitions > 1
    if joined and len(members) == 1 and kind not in _IN_ORDER:
        raise ValueError(
            f"{members[0]}: in a {kind} model vLLM may reorder the rows of this layer, so that an adapter "
            "would reach the wrong heads; adapt other layers, or use --engine hf"
        )
    if getattr(config, "use_mla", False) and members[0].endswith(".kv_b_proj"):
        raise ValueError(
            f"{members[0]}: vLLM folds this layer's weight into its attention, past any adapter; adapt other "
            "layers, or use --engine hf"
        )


def is_partial(layer: Any) -> bool:
    """Return whether every rank has a slice of the layer's input only."""
    return isinstance(layer, RowParallelLinear) and layer.tp_size > 1


def _global_outputs(layer: LinearBase, local: list[int], output_size: int) -> list[int]:
    """Return the output size of every partition over all ranks, key and value heads counted once."""
    if isinstance(layer, QKVParallelLinear):
        heads = layer.total_num_kv_heads
        value = getattr(layer, "v_head_size", layer.head_size)
        return [layer.total_num_heads * layer.head_size, heads * layer.head_size, heads * value]
    return list(getattr(layer, "output_sizes", None) or [output_size])
