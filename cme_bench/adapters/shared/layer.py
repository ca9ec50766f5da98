"""A linear layer with adapters on it: what PEFT asks of every tuner layer, once for all methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.shared.config import AdapterConfig
from cme_bench.adapters.shared.linears import features
from cme_bench.adapters.shared.quantised import parameter_place

Config = TypeVar("Config", bound=AdapterConfig)
Shapes = dict[str, tuple[int, ...]]


class AdapterLinear(nn.Module, BaseTunerLayer, Generic[Config]):  # type: ignore[misc]  # peft carries no types
    """``base_layer(x) + delta(x)`` for every active adapter.

    Parameters lie flat, one ``ParameterDict`` keyed by adapter name for each of ``adapter_layer_names``, so
    that they are saved as ``<module>.<parameter>`` and load under any adapter name. A subclass gives their
    shapes and ``delta``. The base layer is only ever called, so quantised subclasses of ``nn.Linear`` and
    GPT-2's ``Conv1D`` work as they are.
    """

    method: ClassVar[str]
    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ("settings",)

    if TYPE_CHECKING:  # what BaseTunerLayer gives, of which mypy otherwise knows nothing
        get_base_layer: Callable[[], nn.Linear]
        set_adapter: Callable[..., None]
        unmerge: Callable[[], None]
        merged: bool
        disable_adapters: bool
        active_adapters: list[str]
        _get_base_layer_device_and_dtype: Callable[
            [nn.Module], tuple[torch.device | None, torch.dtype | None]
        ]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Config) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = features(self.get_base_layer())
        self.settings: dict[str, Config] = {}
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    @staticmethod
    def shapes(config: Config, d_in: int, d_out: int) -> Shapes:
        """Shape of every parameter of one adapter, by parameter name."""
        raise NotImplementedError

    def delta(self, x: Tensor, adapter_name: str) -> Tensor:
        """Return the adapter's update, scaling included: (..., d_in) to (..., d_out)."""
        raise NotImplementedError

    def reset(self, adapter_name: str) -> None:
        """Start one adapter: ``down`` kaiming uniform (a = sqrt 5), ``up`` as ``init`` says."""
        config = self.settings[adapter_name]
        nn.init.kaiming_uniform_(self.held("down", adapter_name), a=math.sqrt(5))
        up = self.held("up", adapter_name)
        if config.init == "zero":
            nn.init.zeros_(up)
        else:
            bound = config.r**-0.5
            nn.init.uniform_(up, -bound, bound)

    def held(self, part: str, adapter_name: str) -> nn.Parameter:
        """Return the parameter ``<method>_<part>`` of one adapter."""
        held = self._modules[f"{self.method}_{part}"]
        assert held is not None
        found = held._parameters[adapter_name]  # as ParameterDict finds it, in a fourth of the time
        assert found is not None
        return found

    def update_layer(self, adapter_name: str, config: Config) -> None:
        """Add an adapter on the base layer's device, in float32 or the base's dtype if that is wider."""
        device, dtype = parameter_place(self.get_base_layer())
        self.settings[adapter_name] = config
        for name, shape in self.shapes(config, self.in_features, self.out_features).items():
            getattr(self, name)[adapter_name] = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map (..., d_in) to (..., d_out), in the dtype of the base layer's output."""
        names = kwargs.pop("adapter_names", None)
        if self.disable_adapters and self.merged:
            self.unmerge()
        if names is not None:
            self._check_mixed(x, names)
        off = self.disable_adapters or self.merged
        active = [name for name in self.active_adapters if name in self.settings]
        if len(active) == 1 and names is None and not (off or args or kwargs):
            whole = self.together(x, active[0])
            if whole is not None:
                return whole
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if off:
            return result
        if names is not None:
            return self._mixed(x, result, names)
        dtype = result.dtype
        for name in active:
            result = result + self.delta(x, name)
        return result.to(dtype)

    def together(self, x: Tensor, adapter_name: str) -> Tensor | None:
        """Return the base layer's output with the adapter's update, where a method computes both at once;
        else None."""
        return None

    def _check_mixed(self, x: Tensor, names: Sequence[str]) -> None:
        """Raise AdapterError, in PEFT's words, if rows cannot have adapters of their own."""
        if len(names) != len(x):
            raise AdapterError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(names)} and {len(x)} respectively."
            )
        if self.merged:
            raise AdapterError(
                "Cannot pass `adapter_names` when there are merged adapters, please call "
                "`unmerge_adapter` first."
            )
        if getattr(self, "routing_listeners", ()):
            raise AdapterError("routers are not recorded in batches of several adapters (adapter_names)")

    def _mixed(self, x: Tensor, result: Tensor, names: Sequence[str]) -> Tensor:
        """Return ``result`` of the base layer with each row's own adapter; "__base__" names none."""
        total = result.clone()
        for name in set(names) & set(self.settings):
            rows = torch.tensor([i for i, own in enumerate(names) if own == name], device=result.device)
            total[rows] = (result[rows] + self.delta(x[rows], name)).to(result.dtype)
        return total

    def dropped(self, x: Tensor, adapter_name: str) -> Tensor:
        """Return ``x`` after the adapter's dropout; ``x`` itself outside training."""
        probability = self.input_dropout(adapter_name)
        return nn.functional.dropout(x, probability) if self.training and probability else x

    def input_dropout(self, adapter_name: str) -> float:
        """Return the probability of dropping an element of the adapter's input in training."""
        probability: float = self.settings[adapter_name].dropout
        return probability

    def narrow(self, adapter_name: str) -> None:
        """Give an adapter's parameters the base layer's dtype, as ``autocast_adapter_dtype=False`` asks."""
        dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())[1]
        if dtype is not None and dtype.is_floating_point and dtype.itemsize > 1:
            for name in self.adapter_layer_names:
                held = getattr(self, name)
                if adapter_name in held:
                    held[adapter_name] = held[adapter_name].to(dtype)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move an adapter after PEFT has loaded it. Unlike PEFT's own this leaves the dtype alone: a bfloat16
        base must not round the float32 parameters that were just read."""
        target = device or parameter_place(self.get_base_layer())[0]
        for name in self.adapter_layer_names:
            parameters = getattr(self, name)
            if target is not None and adapter_name in parameters and not parameters[adapter_name].is_meta:
                parameters[adapter_name] = parameters[adapter_name].to(target)

    def __repr__(self) -> str:
        return f"{self.method}.{super().__repr__()}"


def why_no_merge(method: str) -> str:
    """Return the sentence for whoever asks to merge a routed adapter."""
    return (
        f"{method} weighs its experts anew for every token, so no single weight matrix equals it and it "
        "cannot be merged into the base model; keep the adapter, or take it off with unload()"
    )
