"""An adapter on a layer that vLLM computes by a method of quantisation: its product, and then the update.

The base's own method makes, loads, repacks and multiplies the weight; none of it is fused with the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from vllm.model_executor.layers.linear import (
    WEIGHT_LOADER_V2_SUPPORTED,
    LinearMethodBase,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from cme_bench.vllm_plugin.method import GatedMethod
from cme_bench.vllm_plugin.spec import BASES, GatedSpec

_OF_LOADING = ("requires_device_loading", "supports_pre_processed_weights", "uses_meta_device")
"""Attributes of a method by which vLLM's loaders go."""


def base_config(block: Mapping[str, Any]) -> QuantizationConfig:
    """Return vLLM's config of the base's own ``quantization_config``. Raises ValueError for other methods."""
    method = str(block.get("quant_method"))
    if method not in BASES:
        raise ValueError(f"the base is quantised with {method}, on which this plugin puts no adapter")
    return get_quantization_config(method).from_config(dict(block))


class GatedQuantisedMethod(GatedMethod, LinearMethodBase):  # type: ignore[misc]  # vllm carries no types here
    """One layer's quantised weight, which ``inner`` computes, and its adapter."""

    def __init__(
        self, inner: LinearMethodBase, spec: GatedSpec, members: list[str], *, must_be_placed: bool = False
    ) -> None:
        super().__init__(spec, members, must_be_placed=must_be_placed)
        self.inner = inner
        for name in _OF_LOADING:
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))

    def create_base(self, layer: Any, *sizes: Any, **attributes: Any) -> None:
        """Make the base's weight as its method stores it."""
        self.inner.create_weights(layer, *sizes, **attributes)

    def base_output(self, layer: Any, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the base's own method computes."""
        output: Tensor = self.inner.apply(layer, tokens, bias)
        return output

    def process_weights_after_loading(self, layer: Any) -> None:
        """Let the base's method repack its weight; the adapter stays in its buffers."""
        self.inner.process_weights_after_loading(layer)


@register_weight_loader_v2_supported_method
class GatedQuantisedMethodV2(GatedQuantisedMethod):
    """The same over a method whose weights know how they are loaded: vLLM tells them apart by class name."""


def over(
    inner: LinearMethodBase, spec: GatedSpec, members: list[str], *, must_be_placed: bool
) -> GatedQuantisedMethod:
    """Return the method of an adapted layer that ``inner`` would compute alone."""
    second = type(inner).__name__ in WEIGHT_LOADER_V2_SUPPORTED
    kind = GatedQuantisedMethodV2 if second else GatedQuantisedMethod
    return kind(inner, spec, members, must_be_placed=must_be_placed)
