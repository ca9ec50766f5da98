"""The scales and settings that stand beside the packed bits of a quantised weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def companions(module: nn.Module) -> dict[str, Any]:
    """Return, by name, the scales and settings that a quantised layer keeps in no parameter or buffer.

    bitsandbytes keeps those of 4 bits at the weight, and moves those of 8 bits from the weight to the layer
    at the first forward; HQQ keeps a mapping. Empty for any other layer.
    """
    weight = getattr(module, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return {"quant_state": state.as_dict()}
    scales = getattr(weight, "SCB", None)
    if scales is None:
        scales = getattr(getattr(module, "state", None), "SCB", None)
    if scales is not None:
        layer_state: Any = module.state
        return {"SCB": scales, "threshold": float(layer_state.threshold)}
    meta = getattr(module, "meta", None)
    return {"meta": meta} if hasattr(module, "W_q") and isinstance(meta, Mapping) else {}


def companion_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors among the companions of a layer, by name."""
    yield from _tensors("", companions(module))


def inner_tensors(tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Return the tensors that a tensor class stands for, by name, as torchao's and quanto's; none for a plain
    one."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if type(tensor) in (Tensor, nn.Parameter) or flatten is None:
        return []
    names, _ = flatten()
    return [(name, getattr(tensor, name)) for name in names]


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name.removeprefix("."), value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(f"{name}.{key}", inner)
