"""A feed-forward block as a sparse mixture of blocks, which share the frozen one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cme_bench.adapters.routing.feed_forward import FeedForward, activation
from cme_bench.adapters.routing.layer import RoutedLayer
from cme_bench.adapters.routing.router import router_logits
from cme_bench.adapters.routing.top_k import top_k_routing
from cme_bench.adapters.shared.layer import AdapterLinear, Shapes
from cme_bench.adapters.shared.lowrank import project


class ExpertBlock(RoutedLayer, AdapterLinear[Any]):
    """A feed-forward block as a mixture: ``sum_i omega_i E_i(x)`` over the ``top_k`` chosen experts.

    The outputs of the frozen linears that read x are computed once for all experts.

    Parameters of one adapter, as saved:
        <method>_router: (k, d_model), R transposed.
        <method>_<linear>_down: (k r, d_in), rows i r to (i + 1) r are expert i's A transposed.
        <method>_<linear>_up: (d_out, k r), columns i r to (i + 1) r are expert i's B transposed.
    """

    static_shapes = False
    """An expert computes the tokens that chose it, as many as they are."""

    def __init__(
        self, base_layer: nn.Module, structure: FeedForward, linears: list[str], name: str, config: Any
    ) -> None:
        nn.Module.__init__(self)
        self.base_layer = base_layer
        self.structure = structure
        self.settings: dict[str, Any] = {}
        self.linears: dict[str, list[str]] = {}
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        parts = [f"{linear}_{part}" for linear in structure.names for part in ("down", "up")]
        self.adapter_layer_names = tuple(f"{self.method}_{part}" for part in ("router", *parts))
        for parameter in self.adapter_layer_names:
            setattr(self, parameter, nn.ParameterDict())
        self._active_adapter = name
        self.add(name, config, linears)

    def add(self, name: str, config: Any, linears: list[str]) -> None:
        """Add an adapter whose experts have LoRAs on the named linears of the block."""
        block = self.get_base_layer()
        first = getattr(block, self.structure.inputs[0])
        shapes: Shapes = {f"{self.method}_router": (config.num_experts, first.in_features)}
        width = config.num_experts * config.r
        for linear in linears:
            module = getattr(block, linear)
            shapes[f"{self.method}_{linear}_down"] = (width, module.in_features)
            shapes[f"{self.method}_{linear}_up"] = (module.out_features, width)
        device, dtype = self._get_base_layer_device_and_dtype(block)
        floating = dtype is not None and dtype.is_floating_point
        wide = torch.promote_types(dtype, torch.float32) if dtype is not None and floating else torch.float32
        self.settings[name], self.linears[name] = config, linears
        for parameter, shape in shapes.items():
            getattr(self, parameter)[name] = nn.Parameter(torch.empty(shape, device=device, dtype=wide))
        self.reset(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def reset(self, adapter_name: str) -> None:
        """Start one adapter: the LoRAs as in LoRA, or as ``init`` says; the router normal."""
        config = self.settings[adapter_name]
        nn.init.normal_(self.held("router", adapter_name), std=config.router_init_range)
        for linear in self.linears[adapter_name]:
            nn.init.kaiming_uniform_(self.held(f"{linear}_down", adapter_name), a=math.sqrt(5))
            up, bound = self.held(f"{linear}_up", adapter_name), config.r**-0.5
            if config.init == "random":
                nn.init.uniform_(up, -bound, bound)
            else:
                nn.init.zeros_(up)

    def _get_base_layer_device_and_dtype(
        self, base_layer: nn.Module
    ) -> tuple[torch.device | None, torch.dtype | None]:
        """Return those of the block's first linear, for which PEFT looks in a linear itself."""
        first = getattr(base_layer, self.structure.inputs[0], base_layer)
        found: tuple[torch.device | None, torch.dtype | None]
        found = super()._get_base_layer_device_and_dtype(first)
        return found

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map (batch, length, d_model) to the same shape, in the dtype of the frozen block's output.

        Several active adapters add what each changes.
        """
        names = kwargs.pop("adapter_names", None)
        if names is not None:
            self._check_mixed(x, names)
            if not self.disable_adapters:
                return self._mixed(x, self.base_layer(x), names)
        active = [name for name in self.active_adapters if name in self.settings]
        if not self.disable_adapters and len(active) == 1:
            return self.mixture(x, active[0])
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or not active:
            return result
        updates = [self.mixture(x, name) - result for name in active]
        return result + torch.stack(updates).sum(dim=0)

    def _mixed(self, x: Tensor, result: Tensor, names: Any) -> Tensor:
        """Return ``result`` of the frozen block, with the rows of each adapter computed by it."""
        total = result.clone()
        for name in set(names) & set(self.settings):
            rows = torch.tensor([i for i, own in enumerate(names) if own == name], device=result.device)
            total[rows] = self.mixture(x[rows], name)
        return total

    def mixture(self, x: Tensor, adapter_name: str) -> Tensor:
        """Return ``sum_i omega_i E_i(x)``: (..., d_model) to (..., d_model)."""
        config, block = self.settings[adapter_name], self.get_base_layer()
        if self.training and config.jitter_noise:
            x = x * torch.empty_like(x).uniform_(1.0 - config.jitter_noise, 1.0 + config.jitter_noise)
        routing = top_k_routing(router_logits(x, self.held("router", adapter_name)), config.top_k)
        self.tell(adapter_name, routing)
        tokens, shares = x.reshape(-1, x.shape[-1]), routing.omega.flatten(0, -2)
        shared = {name: getattr(block, name)(tokens) for name in self.structure.inputs}
        dtype = shared[self.structure.inputs[0]].dtype
        total = torch.zeros(len(tokens), x.shape[-1], device=x.device, dtype=shares.dtype)
        for expert in range(config.num_experts):
            rows = shares[:, expert].nonzero().squeeze(-1)
            if len(rows) or torch.is_grad_enabled():  # all parameters take part in every step
                mine = {name: output[rows] for name, output in shared.items()}
                out = self._expert(expert, tokens[rows], mine, adapter_name)
                total = total.index_add(0, rows, out * shares[rows, expert, None])
        return total.reshape(x.shape).to(dtype)

    def _expert(self, expert: int, x: Tensor, shared: dict[str, Tensor], adapter_name: str) -> Tensor:
        """Return ``E_i(x)`` of some tokens, whose outputs of the frozen linears are ``shared``."""
        block, last = self.get_base_layer(), self.structure.output
        first = {
            name: self._updated(name, output, x, expert, adapter_name) for name, output in shared.items()
        }
        inner = self.structure.join(first, activation(block, self.settings[adapter_name].act_fn))
        return self._updated(last, getattr(block, last)(inner), inner, expert, adapter_name)

    def _updated(self, linear: str, output: Tensor, x: Tensor, expert: int, adapter_name: str) -> Tensor:
        """Return a frozen linear's output with an expert's LoRA added, if it has one on that linear."""
        if linear not in self.linears[adapter_name]:
            return output
        config = self.settings[adapter_name]
        own = slice(expert * config.r, (expert + 1) * config.r)
        down = self.held(f"{linear}_down", adapter_name)[own]
        up = self.held(f"{linear}_up", adapter_name)[:, own]
        z = project(self.dropped(x, adapter_name), down, cast_input=self.cast_input_dtype_enabled)
        return output + project(z * config.scale, up).to(output.dtype)
