"""A linear layer with low-rank experts behind a per-token router."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.routing import bf16_products, inference
from cme_bench.adapters.routing.config import RoutedConfig
from cme_bench.adapters.routing.fused_linear import Weights, fused_linear
from cme_bench.adapters.routing.gate import GateSettings
from cme_bench.adapters.routing.narrow import Drop
from cme_bench.adapters.routing.router import Routing, router_logits, weigh
from cme_bench.adapters.shared.layer import AdapterLinear, why_no_merge
from cme_bench.adapters.shared.linears import frozen_plain, plain, unheard
from cme_bench.adapters.shared.lowrank import autocast_on, fitted, gated_up, project

Routed = TypeVar("Routed", bound=RoutedConfig)
RoutingListener = Callable[[str, Routing], None]
"""Called with the adapter's name and the routing, once for every forward pass through a layer."""


class RoutedLayer:
    """A layer behind a per-token router, which tells each listener the routing of every forward pass."""

    routing_listeners: tuple[RoutingListener, ...] = ()
    settings: dict[str, Any]

    def tell(self, adapter_name: str, routing: Routing) -> None:
        """Call every listener."""
        for listener in self.routing_listeners:
            listener(adapter_name, routing)


class RoutedLinear(RoutedLayer, AdapterLinear[Routed]):
    """A linear layer with low-rank experts behind a per-token router: parameters down, up, router, perhaps
    more."""

    other_param_names = ("settings", "_matrices")
    _as_written: ClassVar[bool]
    """Whether the layer computes as this class says; what a method changes is computed plainly."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Routed) -> None:
        self._matrices: dict[str, inference.Matrices] = {}
        super().__init__(base_layer, adapter_name, config)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = ("routing", "weigh", "delta", "dropped", "_latent_and_routing")
        cls._as_written = all(getattr(cls, name) is getattr(RoutedLinear, name) for name in names)

    def reset(self, adapter_name: str) -> None:
        """Start as every adapter does; the router starts like ``down``."""
        super().reset(adapter_name)
        nn.init.kaiming_uniform_(self.held("router", adapter_name), a=math.sqrt(5))

    def routing(self, x: Tensor, adapter_name: str) -> Routing:
        """Return phi and omega for every token of ``x``, (..., k) each, in float32 or wider."""
        return self.weigh(router_logits(x, self.held("router", adapter_name)), adapter_name)

    def weigh(self, logits: Tensor, adapter_name: str) -> Routing:
        """Return phi and omega of the router's logits, all (..., k)."""
        return weigh(logits, self.interaction(adapter_name), self.normalizes(adapter_name))

    def interaction(self, adapter_name: str) -> Tensor | None:
        """Return M of one adapter, (k, k); None where the method has no interaction of experts."""
        return None

    def normalizes(self, adapter_name: str) -> bool:
        """Return whether omega is divided by its sum."""
        return False

    def together(self, x: Tensor, adapter_name: str) -> Tensor | None:
        """Return the base layer's output with the update, where both can be one step: of autograd, or without
        gradients of few operations."""
        if not torch.is_grad_enabled():
            return self._inferred(x, adapter_name)
        linear = self.get_base_layer()
        if not (frozen_plain(linear) and self._fuses(x, adapter_name)):
            return None
        if not linear.weight.dtype == x.dtype == self._product_dtype(x, adapter_name):
            return None
        return self._fused(x, adapter_name, (linear.weight, linear.bias))

    def _inferred(self, x: Tensor, adapter_name: str) -> Tensor | None:
        """Return what ``together`` does, without gradients."""
        down, up, router = (self.held(part, adapter_name) for part in ("down", "up", "router"))
        dropping = self.training and (self.input_dropout(adapter_name) or self.latent_dropout(adapter_name))
        if dropping or not (self._as_written and self.cast_input_dtype_enabled):
            return None
        found = self._matrices.get(adapter_name)
        if found is None or not found.still(x, down, up, router):
            if (dtype := inference.product_dtype(x, down, up, router)) is None:
                return None
            found = self._matrices[adapter_name] = inference.Matrices.of(x, down, up, router, dtype)
        linear: Any = self.base_layer
        alone = plain(linear) and linear.weight.dtype == x.dtype
        y: Tensor = linear.forward(x) if alone else linear(x)
        settings = self._gate_settings(adapter_name, found.columns.dtype)
        latent, routing = inference.gated(x, found, self.interaction(adapter_name), settings)
        if self.routing_listeners:
            shape = (*x.shape[:-1], routing.phi.shape[-1])
            self.tell(adapter_name, Routing(routing.phi.reshape(shape), routing.omega.reshape(shape)))
        return inference.added(y.reshape(-1, y.shape[-1]), latent, found, own=unheard(linear)).reshape(
            y.shape
        )

    def delta(self, x: Tensor, adapter_name: str) -> Tensor:
        """Return ``scale * sum_i omega_i drop(x) A_i B_i``: (..., d_in) to (..., d_out).

        With gradients it is one step of autograd; what follows here is the same, written plainly.
        """
        if torch.is_grad_enabled() and self._fuses(x, adapter_name):
            return self._fused(x, adapter_name, None)
        config = self.settings[adapter_name]
        z, routing = self._latent_and_routing(x, adapter_name)
        self.tell(adapter_name, routing)
        return gated_up(
            z,
            self.held("up", adapter_name),
            routing.omega * config.scale,
            rank=config.r,
            latent_dropout=self.latent_dropout(adapter_name) if self.training else 0.0,
        )

    def _latent_and_routing(self, x: Tensor, adapter_name: str) -> tuple[Tensor, Routing]:
        """Return ``drop(x) A`` and the routing of x; from one product where nothing is dropped and precision
        allows it."""
        down, router = self.held("down", adapter_name), self.held("router", adapter_name)
        cast = self.cast_input_dtype_enabled
        if cast:
            x = fitted(x, down)  # once, for both products
        dropped = self.dropped(x, adapter_name)
        if dropped is x and bf16_products.suits(x) and autocast_on(x) and router.dtype == torch.float32:
            z, logits = bf16_products.latent_and_logits(x, down, router)
            return z, self.weigh(logits, adapter_name)
        routing = self.routing(x, adapter_name)
        return project(dropped, down, cast_input=cast), routing

    def _fuses(self, x: Tensor, adapter_name: str) -> bool:
        """Return whether ``fused_linear`` computes this layer."""
        down, up = self.held("down", adapter_name), self.held("up", adapter_name)
        return (
            self._as_written
            and self.cast_input_dtype_enabled
            and down.dtype == up.dtype
            and not (autocast_on(x) and torch.float64 in {x.dtype, down.dtype})  # which autocast leaves alone
            and not (self.training and self.latent_dropout(adapter_name))
        )

    def _product_dtype(self, x: Tensor, adapter_name: str) -> torch.dtype:
        if autocast_on(x):
            return torch.get_autocast_dtype(x.device.type)
        return self.held("down", adapter_name).dtype

    def _fused(self, x: Tensor, adapter_name: str, base: tuple[Tensor, Tensor | None] | None) -> Tensor:
        down, up, router = (self.held(part, adapter_name) for part in ("down", "up", "router"))
        probability = self.input_dropout(adapter_name) if self.training else 0.0
        drop, seen = None, None
        if probability:
            whole = fitted(x.detach(), down)
            if x.is_cuda:
                seen, kept = torch.native_dropout(whole, probability, True)
            else:
                kept = nn.functional.dropout(torch.ones_like(whole), probability) != 0
            drop = Drop(kept, 1.0 / (1.0 - probability))
        settings = self._gate_settings(adapter_name, self._product_dtype(x, adapter_name))
        adapter = (down, up, router, self.interaction(adapter_name))
        y, routing = fused_linear(x, adapter, settings, base=base, drop=drop, seen=seen)
        self.tell(adapter_name, routing)
        return y

    def stacked(
        self, parameters: Mapping[str, Tensor], adapter_name: str, dtype: torch.dtype
    ) -> tuple[Weights, GateSettings] | None:
        """Return what ``fused_linear`` takes, for products in ``dtype``, of parameters of several adapters.

        ``parameters``: by names in the layer, [adapters, ...]. None where it does not compute the layer.
        """
        mixed = self.interaction(adapter_name)
        if not self._as_written or self.latent_dropout(adapter_name) or not self.cast_input_dtype_enabled:
            return None
        if mixed is not None and mixed is not self.held("interaction", adapter_name):
            return None
        parts = ("down", "up", "router", *(() if mixed is None else ("interaction",)))
        down, up, router, *rest = (parameters[f"{self.method}_{part}.{adapter_name}"] for part in parts)
        return (down, up, router, rest[0] if rest else None), self._gate_settings(adapter_name, dtype)

    def _gate_settings(self, adapter_name: str, dtype: torch.dtype) -> GateSettings:
        config = self.settings[adapter_name]
        return GateSettings(config.r, config.scale, self.normalizes(adapter_name), dtype)

    def latent_dropout(self, adapter_name: str) -> float:
        """Return the probability of dropping an element of the gated latent; 0 where dropout falls on the
        input."""
        return 0.0

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise AdapterError, always: the update depends on the input."""
        raise AdapterError(why_no_merge(self.method))

    def unmerge(self) -> None:
        """Raise AdapterError, always: nothing can have been merged."""
        raise AdapterError(why_no_merge(self.method))
