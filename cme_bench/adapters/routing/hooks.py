"""Hearing what the routers say during a model's forward passes, with the padding mask of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.registry import routed_names
from cme_bench.adapters.routing.config import RoutedConfig
from cme_bench.adapters.routing.layer import RoutedLayer
from cme_bench.adapters.routing.router import Routing


class Heard(NamedTuple):
    """One forward pass through one routed layer.

    layer: Name of the layer in the base model. config: Settings of the adapter. routing: phi and omega, (...,
        k).
    mask: True for tokens that count, shaped like the routing without its last axis; None if all count.
    """

    layer: str
    adapter: str
    config: RoutedConfig
    routing: Routing
    mask: Tensor | None


@contextmanager
def routing_hooks(model: nn.Module, callback: Callable[[Heard], None]) -> Iterator[None]:
    """Call ``callback`` for every forward pass through every routed layer while the context is open.

    The recomputation that gradient checkpointing does inside ``backward()`` is not reported: each token is
    heard once. A two-dimensional ``attention_mask`` given to the decoder marks padding; while generating with
    a KV cache its last columns belong to the new tokens.

    Raises AdapterError if the model has no routed layer.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = {name: module for name, module in base.named_modules() if isinstance(module, RoutedLayer)}
    if not layers:
        raise AdapterError(f"this model has no routed adapter ({', '.join(routed_names())})")
    decoder = getattr(base, "base_model", base)
    masks: list[Tensor] = []

    def take_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            masks.append(mask.bool())

    def drop_mask(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        masks.clear()

    def listener(layer: str, module: RoutedLayer) -> Callable[[str, Routing], None]:
        def hear(adapter: str, routing: Routing) -> None:
            if _in_backward():
                return
            tokens = routing.phi.shape[:-1]
            mask = masks[-1][:, -tokens[-1] :] if masks else None
            if mask is not None and mask.shape != tokens:
                mask = None
            callback(Heard(layer, adapter, module.settings[adapter], routing, mask))

        return hear

    hooks = [
        decoder.register_forward_pre_hook(take_mask, with_kwargs=True),
        decoder.register_forward_hook(drop_mask, always_call=True),
    ]
    own = {name: listener(name, layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.routing_listeners += (own[name],)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.routing_listeners = tuple(
                other for other in layer.routing_listeners if other is not own[name]
            )


def _in_backward() -> bool:
    """Return whether autograd is running on this thread, as it is while a checkpointed layer is
    recomputed."""
    return bool(torch._C._current_graph_task_id() != -1)
