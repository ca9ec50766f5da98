"""A PEFT adapter folder in the form that the vLLM plugin runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.tuners.adalora.layer import SVDLinear
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import CONFIG_FILE, read_config, tensor_shapes, weights_file
from cme_bench.adapters.load import check_adapter
from cme_bench.adapters.meta_model import adapted, bare_model
from cme_bench.adapters.moslora.layer import MosLoraLinear
from cme_bench.adapters.routing.router import NORMALIZER_FLOOR
from cme_bench.adapters.shared.layer import RoutedLinear
from cme_bench.engines.vllm.fields import refuse_inexact
from cme_bench.errors import first_line
from cme_bench.vllm_plugin.spec import GatedSpec

_ADAPTER = "default"
_PREFIX = "base_model.model."
_LINEARS = (LoraLinear, SVDLinear, MosLoraLinear, RoutedLinear)
_ADALORA_EPSILON = 1e-5  # PEFT's SVDLinear divides by the initial rank + 1e-5, also where ranks were cut


@dataclass(frozen=True, slots=True)
class GatedAdapter:
    """``tensors`` by ``<module>.<part>``, float32, with the shapes of ``spec.shapes``."""

    spec: GatedSpec
    tensors: dict[str, Tensor]


def read_gated(folder: Path, base_config: Any) -> GatedAdapter:
    """The adapter in ``folder``, for a base model with ``base_config``.

    PEFT builds the adapter on a model without memory, so that every setting means what it means there; the
    tensors come from the file. LoRA of several ranks is padded to the largest; AdaLoRA's singular values and
    MoSLoRA's mixer are multiplied into A. Raises AdapterError as ``load_adapter`` does, and for what the
    plugin cannot compute.
    """
    config, layers = adapted_linears(folder, base_config)
    tensors = load_file(weights_file(folder))
    if isinstance(next(iter(layers.values())), RoutedLinear):
        spec = _routed_spec(config, tuple(sorted(layers)))
        return GatedAdapter(spec, _routed_tensors(tensors, layers, spec))
    return _plain_adapter(config, layers, tensors)


def adapted_linears(folder: Path, base_config: Any) -> tuple[Any, dict[str, nn.Module]]:
    """The config of the adapter in ``folder`` and PEFT's layer of every linear it adapts, by module name.

    No tensor is read. Raises AdapterError as ``load_adapter`` does, for a setting that the plugin does not
    compute exactly, and for a layer that it cannot reach.
    """
    refuse_inexact(folder)
    config = read_config(folder)
    try:
        model = adapted(bare_model(base_config), config)
    except ValueError as error:
        raise AdapterError(f"{folder / CONFIG_FILE}: {first_line(error)}") from None
    layers = {
        name.removeprefix(_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    head = model.get_base_model().get_output_embeddings()
    for name, layer in layers.items():
        if layer is head or not isinstance(layer, _LINEARS):
            kind = "the output layer" if layer is head else type(layer.get_base_layer()).__name__
            raise AdapterError(
                f"{folder}: it adapts {name} ({kind}), which the vLLM plugin cannot compute; use --engine hf"
            )
    if not layers:
        raise AdapterError(f"{folder}: it adapts no linear layer; use --engine hf")
    check_adapter(bare_model(base_config), folder)
    _check_names(weights_file(folder), config, layers)
    return config, layers


def _check_names(weights: Path, config: Any, layers: Mapping[str, nn.Module]) -> None:
    """Raises AdapterError for a tensor that the plugin would leave out, such as a base weight that was
    trained with the adapter: PEFT loads it, so it changes the answers."""
    computed = {
        f"{_PREFIX}{name}.{part}" for name, layer in layers.items() for part in _part_names(config, layer)
    }
    for name in tensor_shapes(weights):
        if name not in computed:
            raise AdapterError(
                f"{weights}: tensor {name} is no part of an adapted linear layer, and the vLLM plugin "
                "computes nothing else; use --engine hf"
            )


def _part_names(config: Any, layer: nn.Module) -> tuple[str, ...]:
    if isinstance(layer, SVDLinear):
        return ("lora_A", "lora_B", "lora_E")
    if isinstance(layer, LoraLinear):
        return ("lora_A.weight", "lora_B.weight")
    if isinstance(layer, MosLoraLinear):
        return ("moslora_down", "moslora_mixer", "moslora_up")
    return tuple(f"{_method(config)}_{part}" for part in ("down", "up", "router", "interaction"))


def _plain_adapter(
    config: Any, layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
) -> GatedAdapter:
    plain = {name: _plain_parts(config, name, layer, tensors) for name, layer in layers.items()}
    rank = max(1, *(len(down) for down, _ in plain.values()))
    spec = GatedSpec(
        method=_method(config),
        rank=rank,
        experts=1,
        scale=1.0,
        shared_latent=False,
        interaction=False,
        normalizer_floor=None,
        modules=tuple(sorted(layers)),
    )
    padded = {}
    for name, (down, up) in plain.items():
        missing = rank - len(down)
        padded[f"{name}.down"] = nn.functional.pad(down, (0, 0, 0, missing))
        padded[f"{name}.up"] = nn.functional.pad(up, (0, missing))
    return GatedAdapter(spec, padded)


def _method(config: Any) -> str:
    return str(config.peft_type.value).lower()


def _routed_spec(config: Any, modules: tuple[str, ...]) -> GatedSpec:
    return GatedSpec(
        method=_method(config),
        rank=config.r,
        experts=config.num_experts,
        scale=config.scale,
        shared_latent=_method(config) == "hydralora",
        interaction=getattr(config, "competition", False),
        normalizer_floor=NORMALIZER_FLOOR if getattr(config, "normalize_omega", False) else None,
        modules=modules,
    )


def _routed_tensors(
    tensors: Mapping[str, Tensor], layers: Mapping[str, Any], spec: GatedSpec
) -> dict[str, Tensor]:
    return {
        f"{name}.{part}": tensors[f"{_PREFIX}{name}.{spec.method}_{part}"]
        for name, layer in layers.items()
        for part in spec.shapes(layer.in_features, layer.out_features)
    }


def _plain_parts(
    config: Any, name: str, layer: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """``down`` (rank, d_in) and ``up`` (d_out, rank) of ``x A B``, float32, all factors included."""

    def part(key: str) -> Tensor:
        return tensors[f"{_PREFIX}{name}.{key}"].float()

    if isinstance(layer, SVDLinear):
        scale = layer.scaling[_ADAPTER] / (config.init_r + _ADALORA_EPSILON)
        return part("lora_A") * part("lora_E") * scale, part("lora_B")
    if isinstance(layer, LoraLinear):
        return part("lora_A.weight") * layer.scaling[_ADAPTER], part("lora_B.weight")
    assert isinstance(layer, MosLoraLinear)
    scale = layer.settings[_ADAPTER].scale
    return part("moslora_mixer") @ part("moslora_down") * scale, part("moslora_up")
