"""The PEFT tuner of our methods: finds the layers to adapt and puts adapters on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from peft import NoMatchingPeftModuleError
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from cme_bench.adapters.errors import AdapterError, NoTargetError
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
        """Fill in the default targets. Raises AdapterError, listing the candidates, if nothing matches."""
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
        bare = copy.copy(peft_config)  # what is excluded afterwards is for PEFT to explain
        bare.exclude_modules = bare.modules_to_save = bare.layers_to_transform = None
        if named != "all-linear" and not any(
            self._check_target_module_exists(bare, key) for key, _ in self.model.named_modules()
        ):
            shown = named if isinstance(named, str) else ", ".join(sorted(named))
            raise NoTargetError(
                f"no layer matches target_modules {shown}; linear layers of this model: {linears}"
            )
        return peft_config

    def inject_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Inject as PEFT does. Raises NoTargetError, with PEFT's words, if all that is targeted is
        excluded."""
        try:
            super().inject_adapter(*args, **kwargs)
        except NoMatchingPeftModuleError as error:
            if isinstance(error, AdapterError):
                raise
            raise NoTargetError(str(error)) from None

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand ``adapter_names``, one for every row of the batch, to the layers, as PEFT's LoRA does."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise AdapterError("adapter_names cannot be used in training mode")
        kinds = (self.tuner_layer_cls, AuxiliaryTrainingWrapper)
        layers = [module for module in self.modules() if isinstance(module, kinds)]
        known = {"__base__"}.union(*(m.settings for m in layers if isinstance(m, self.tuner_layer_cls)))
        if unknown := sorted(set(names) - known):
            raise AdapterError(f"adapter_names: no adapter is named {', '.join(unknown)}")
        beams = kwargs.get("num_beams") or 1
        each = [name for name in names for _ in range(beams)]
        hooks = [layer.register_forward_pre_hook(_naming(each), with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cast as PEFT's flag says: the base's dtype for an adapter's parameters where it is off, else
        float32."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            for layer in self.modules():
                if isinstance(layer, self.tuner_layer_cls):
                    layer.narrow(adapter_name)

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


def _naming(names: Sequence[str]) -> Callable[..., tuple[Any, Any]]:
    """Return a hook that adds ``adapter_names`` to what a layer is called with."""

    def hook(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return args, kwargs | {"adapter_names": list(names)}

    return hook
