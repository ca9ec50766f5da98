"""The quantisation config under which vLLM knows the plugin; it quantises nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase

from cme_bench.vllm_plugin import output_layer  # noqa: F401 - importing it registers
from cme_bench.vllm_plugin.file import ADAPTER_FILE
from cme_bench.vllm_plugin.layout import checkpoint_modules
from cme_bench.vllm_plugin.loading import load_layers
from cme_bench.vllm_plugin.method import GatedLinearMethod
from cme_bench.vllm_plugin.spec import EMBEDDED, QUANT_METHOD, SUBFOLDER, GatedSpec


@register_quantization_config(QUANT_METHOD)
class GatedConfig(QuantizationConfig):  # type: ignore[misc]  # vllm carries no types here
    """Gives every adapted linear a ``GatedLinearMethod``, every other one vLLM's own.

    ``embedded``: the adapter lies in the checkpoint's own folder, and is loaded once the base weights of
    every layer are there. Otherwise ``worker.ExtendedWorker`` loads adapters into the running engine.
    """

    def __init__(self, spec: GatedSpec, embedded: bool) -> None:
        super().__init__()
        self.spec = spec
        self.embedded = embedded
        self._layers: list[Any] = []
        self._ready = 0

    def get_name(self) -> str:
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 70

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GatedConfig:
        return cls(GatedSpec.from_block(config), bool(config.get(EMBEDDED, False)))

    def get_quant_method(self, layer: Any, prefix: str) -> QuantizeMethodBase | None:
        if not isinstance(layer, LinearBase):
            return None
        members = checkpoint_modules(prefix, self.packed_modules_mapping)
        if not set(members) & set(self.spec.modules):
            return UnquantizedLinearMethod()
        self._layers.append(layer)
        if not self.embedded:
            return GatedLinearMethod(self.spec, members)
        folder = Path(get_current_vllm_config().model_config.model)
        return GatedLinearMethod(self.spec, members, lambda: self._one_more_ready(folder))

    def _one_more_ready(self, folder: Path) -> None:
        self._ready += 1
        if self._ready == len(self._layers):
            load_layers(self._layers, folder / SUBFOLDER / ADAPTER_FILE)
