"""The PEFT tuner of our methods: finds the layers to adapt and puts adapters on them."""

from __future__ import annotations

from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.shared.config import AdapterConfig
from cme_bench.adapters.shared.layer import AdapterLinear, why_no_merge
from cme_bench.adapters.shared.targets import candidates, default_targets


class AdapterModel(BaseTuner):  # type: ignore[misc]  # peft carries no types
    """Adapts the linear layers that the config names, or the feed-forward linears of a known architecture."""

    prefix: str
    tuner_layer_cls: type[AdapterLinear[Any]]
    mergeable: ClassVar[bool] = False

    def _prepare_adapter_config(
        self, peft_config: AdapterConfig, model_config: dict[str, Any]
    ) -> AdapterConfig:
        """Fills in the default targets. Raises AdapterError, listing the candidates, if nothing matches."""
        linears = ", ".join(candidates(self.model)) or "none"
        if peft_config.target_modules is None:
            architecture = model_config.get("model_type")
            targets = default_targets(architecture, peft_config.target_attention)
            if targets is None:
                raise AdapterError(
                    f"no default targets for the architecture {architecture!r}: set target_modules; "
                    f"linear layers of this model: {linears}"
                )
            peft_config.target_modules = set(targets)
        named = peft_config.target_modules
        if named != "all-linear" and not any(
            self._check_target_module_exists(peft_config, key) for key, _ in self.model.named_modules()
        ):
            shown = named if isinstance(named, str) else ", ".join(sorted(named))
            raise AdapterError(
                f"no layer matches target_modules {shown}; linear layers of this model: {linears}"
            )
        return peft_config

    def _create_and_replace(  # noqa: PLR0917  # PEFT's signature
        self,
        peft_config: AdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        if not isinstance(target, nn.Linear):
            kind = "another method's adapter" if isinstance(target, BaseTunerLayer) else type(target).__name__
            raise AdapterError(
                f"{current_key} is {kind}; only torch.nn.Linear and its subclasses can be adapted"
            )
        layer = self.tuner_layer_cls(target, adapter_name, peft_config)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        if not self.mergeable:
            raise AdapterError(why_no_merge(self.tuner_layer_cls.method))
        super()._check_merge_allowed()
