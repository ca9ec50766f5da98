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
from cme_bench.adapters.shared.linears import is_linear
from cme_bench.adapters.shared.targets import candidates, default_targets
from cme_bench.adapters.shared.towers import language_type, outside_language
from cme_bench.util.auto_model import sees

_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules of torch whose fast paths read the weights of their linear layers."""
_MAMBAS = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
_READ_BY_MAMBA = frozenset({"conv1d", "dt_proj", "out_proj", "x_proj"})
"""Layers whose weights Mamba's kernels read; PEFT refuses LoRA on the first and third for the same reason."""


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
            own = getattr(self.model, "config", None)
            architecture = language_type(own) if sees(own) else model_config.get("model_type")
            targets = default_targets(architecture, peft_config.target_attention)
            if targets is None:
                raise AdapterError(
                    f"no default targets for the architecture {architecture!r}: set target_modules; "
                    f"linear layers of this model: {linears}"
                )
            peft_config.target_modules = set(targets)
            if peft_config.exclude_modules is None:  # towers have layers of the same names
                peft_config.exclude_modules = outside_language(self.model)
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
            raise AdapterError("Cannot pass `adapter_names` when the model is in training mode.")
        kinds = (self.tuner_layer_cls, AuxiliaryTrainingWrapper)
        layers = [module for module in self.modules() if isinstance(module, kinds)]
        known = {"__base__"}.union(*(m.settings for m in layers if isinstance(m, self.tuner_layer_cls)))
        if unknown := sorted(set(names) - known):
            raise AdapterError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        beams = kwargs.get("num_beams") or 1
        each = [name for name in names for _ in range(beams)]
        once = set(_encoder_modules(self.model))  # an encoder reads each row before beams repeat it
        hooks = [
            layer.register_forward_pre_hook(_naming(names if layer in once else each), with_kwargs=True)
            for layer in layers
        ]
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

    def _check_target_module_compatiblity(
        self, peft_config: AdapterConfig, model: nn.Module, target_name: str
    ) -> None:
        """Refuse what PEFT refuses for LoRA, and every other layer of Mamba that is read but not called."""
        model_type = self.get_model_config(model).get("model_type")
        if model_type in _MAMBAS and target_name in _READ_BY_MAMBA:
            raise AdapterError(
                f"{target_name} of {model_type} cannot be adapted: Mamba's kernels read its weight and never "
                "call it; name other target_modules"
            )

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
        _check_target(parent, target, current_key)
        layer = self.tuner_layer_cls(target, adapter_name, peft_config)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        if not self.mergeable:
            raise AdapterError(why_no_merge(self.tuner_layer_cls.method))
        super()._check_merge_allowed()


def _encoder_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules of the encoder of an encoder-decoder; none of any other model."""
    get = getattr(model, "get_encoder", None)
    encoder = get() if callable(get) else None
    return list(encoder.modules()) if isinstance(encoder, nn.Module) and encoder is not model else []


def _check_target(parent: nn.Module, target: nn.Module, key: str) -> None:
    """Refuse a layer that is not linear, or whose weight its parent reads without calling the layer."""
    if not is_linear(target):
        kind = "another method's adapter" if isinstance(target, BaseTunerLayer) else type(target).__name__
        raise AdapterError(
            f"{key} is {kind}; only torch.nn.Linear, its subclasses and GPT-2's Conv1D can be adapted"
        )
    if isinstance(parent, _READERS):
        raise AdapterError(
            f"{key} cannot be adapted: {type(parent).__name__} reads its weight and never calls it; "
            "name other target_modules"
        )


def _naming(names: Sequence[str]) -> Callable[..., tuple[Any, Any]]:
    """Return a hook that adds ``adapter_names`` to what a layer is called with."""

    def hook(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return args, kwargs | {"adapter_names": list(names)}

    return hook
