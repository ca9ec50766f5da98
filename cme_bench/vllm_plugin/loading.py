"""Putting an adapter file into the layers of a model that vLLM holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cme_bench.vllm_plugin.file import AdapterFileError, load_adapter, read_spec
from cme_bench.vllm_plugin.method import GatedMethod
from cme_bench.vllm_plugin.slot_form import why_no_room
from cme_bench.vllm_plugin.spec import GatedSpec


def gated_layers(model: nn.Module) -> list[Any]:
    """Return the layers of ``model`` that the plugin serves. Raises ValueError if there are none. Either the
    engine was started without an adapter, or vLLM has no model class for this architecture and runs
    transformers' one, whose layers have other names."""
    layers = [
        module for module in model.modules() if isinstance(getattr(module, "quant_method", None), GatedMethod)
    ]
    if not layers:
        raise ValueError(
            f"no layer of vLLM's {type(model).__name__} can take an adapter: the engine was started without "
            "one, or vLLM has no model class of its own for this architecture; use --engine hf"
        )
    return layers


def load_layers(layers: Sequence[Any], path: Path) -> int:
    """Check the file against the layers, then copy it in; the number of modules. See ``load_adapter``."""
    places = [(layer.quant_method.layout, partial(layer.quant_method.place, layer)) for layer in layers]
    return load_adapter(path, layers[0].quant_method.spec, places)


def fit_layers(layers: Sequence[Any], path: Path) -> int:
    """Do as ``load_layers``, also with an adapter of another shape or on fewer modules.

    The model must run without compiled code and without graphs.
    """
    spec = read_spec(path)
    places = [(layer.quant_method.layout, partial(_fit, layer, spec)) for layer in layers]
    return load_adapter(path, spec, places, all_modules=False)


def _fit(layer: Any, spec: GatedSpec, tensors: Mapping[str, Tensor]) -> None:
    if layer.quant_method.spec != spec:
        layer.quant_method.fit(layer, spec)
    layer.quant_method.place(layer, tensors)


def load_slot(layers: Sequence[Any], path: Path, slot: int) -> int:
    """Put an adapter file into a slot of layers that have slots; the number of modules."""
    spec, room = read_spec(path), layers[0].quant_method.spec
    if reason := why_no_room(spec, room):
        raise AdapterFileError(f"{path} fits no slot of this engine: {reason}")
    places = [
        (layer.quant_method.layout, partial(layer.quant_method.place_slot, layer, slot, spec))
        for layer in layers
    ]
    return load_adapter(path, spec, places, all_modules=False)


def clear_layers(layers: Sequence[Any]) -> None:
    """Make the adapter the identity."""
    for layer in layers:
        layer.quant_method.clear(layer)
