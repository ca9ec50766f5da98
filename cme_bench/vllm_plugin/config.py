"""The quantisation config under which vLLM knows the plugin; it quantises nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase

from cme_bench.vllm_plugin import output_layer  # noqa: F401 - importing it registers
from cme_bench.vllm_plugin.layout import checkpoint_modules
from cme_bench.vllm_plugin.method import GatedLinearMethod
from cme_bench.vllm_plugin.quantised import base_config, over
from cme_bench.vllm_plugin.slot_index import SlotIndex
from cme_bench.vllm_plugin.slot_method import index_of_engine, slotted
from cme_bench.vllm_plugin.spec import BASE, DIGEST, EMBEDDED, QUANT_METHOD, SLOTS, GatedSpec


@register_quantization_config(QUANT_METHOD)
class GatedConfig(QuantizationConfig):  # type: ignore[misc]  # vllm carries no types here
    """Gives every adapted linear a ``GatedLinearMethod``, every other one vLLM's own.

    ``embedded``: the adapter lies in the checkpoint's own folder, and ``guard`` loads it once the model is
    there. Otherwise ``worker.ExtendedWorker`` loads adapters into the running engine. ``digest``: of the
    embedded adapter's file; None in folders that were exported before it was recorded. ``base``: vLLM's own
    config of a base that is quantised. ``slotted``: layers hold several adapters of the form ``spec``, of
    which each request names its own; ``digests``: of those in the checkpoint's own folder, by name.
    """

    guarded: ClassVar[bool] = False
    """Whether ``guard`` looks at every model that this process loads."""

    def __init__(
        self,
        spec: GatedSpec,
        embedded: bool,
        digest: str | None = None,
        base: QuantizationConfig | None = None,
        *,
        slotted: bool = False,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        self.base = base
        super().__init__()
        self.slotted, self.digests = slotted, dict(digests or {})
        self._index: SlotIndex | None = None
        self.spec = spec
        self.embedded = embedded
        self.digest = digest
        self._modules = {module: module for module in spec.modules}
        """Name on vLLM -> module of the adapter."""

    def get_name(self) -> str:
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        own = [torch.float32, torch.bfloat16, torch.float16]
        return own if self.base is None else list(self.base.get_supported_act_dtypes())

    @property
    def packed_modules_mapping(self) -> dict[str, list[str]]:
        """Return vLLM's names of merged linears, with those that each holds; the base's config shares it."""
        return self._packed

    @packed_modules_mapping.setter
    def packed_modules_mapping(self, mapping: dict[str, list[str]]) -> None:
        self._packed = mapping
        if self.base is not None:
            self.base.packed_modules_mapping = mapping

    def __getattr__(self, name: str) -> Any:
        """Return what vLLM asks the config of a quantised base for, such as the block size of FP8."""
        if name.startswith("__") or (base := self.__dict__.get("base")) is None:
            raise AttributeError(name)
        return getattr(base, name)

    def maybe_update_config(self, *args: Any, **kwargs: Any) -> None:
        if self.base is not None:
            self.base.maybe_update_config(*args, **kwargs)

    @classmethod
    def get_min_capability(cls) -> int:
        return 70

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GatedConfig:
        """Read a block. Raises ValueError for one that is not ours, or that this vLLM cannot be held to."""
        if config.get(EMBEDDED) and not cls.guarded:
            raise ValueError("cme_bench cannot check in this vLLM that the folder's adapter is applied")
        block = config.get(BASE)
        base = None if block is None else base_config(block)
        return cls(
            GatedSpec.from_block(config),
            bool(config.get(EMBEDDED, False)),
            config.get(DIGEST),
            base,
            slotted=bool(config.get(SLOTS, False)),
            digests=found if isinstance(found := config.get(SLOTS), dict) else None,
        )

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Follow the names that a model class of vLLM gives to the checkpoint's modules."""
        renamed = {}
        for name, module in self._modules.items():
            for new in hf_to_vllm_mapper.apply_list([f"{name}.weight"]):  # none: vLLM drops it
                renamed[new.removesuffix(".weight")] = module
        self._modules = renamed
        if self.base is not None:
            self.base.apply_vllm_mapper(hf_to_vllm_mapper)

    def get_quant_method(self, layer: Any, prefix: str) -> QuantizeMethodBase | None:
        own = None if self.base is None else self.base.get_quant_method(layer, prefix)
        if not isinstance(layer, LinearBase):
            return own
        names = checkpoint_modules(prefix, self.packed_modules_mapping)
        if not self._modules.keys() & set(names):
            return own or UnquantizedLinearMethod()
        members = [self._modules.get(name, f"{name} (no adapter)") for name in names]
        if self.slotted:
            self._index = self._index or index_of_engine()
            return slotted(own or UnquantizedLinearMethod(), self.spec, members, self._index)
        if own is None or type(own) is UnquantizedLinearMethod:
            return GatedLinearMethod(self.spec, members, must_be_placed=self.embedded)
        return over(own, self.spec, members, must_be_placed=self.embedded)
