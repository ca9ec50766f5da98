"""A PEFT adapter folder in the form that the vLLM plugin runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import CONFIG_FILE, read_config, tensor_shapes, weights_file
from cme_bench.adapters.gated import GatedForm, Read
from cme_bench.adapters.load import check_adapter, check_numbers
from cme_bench.adapters.meta_model import adapted, bare_model
from cme_bench.adapters.registry import method_of
from cme_bench.adapters.shared.towers import language_path
from cme_bench.engines.vllm.fields import needs_merging, refuse_inexact
from cme_bench.util.errors import first_line
from cme_bench.vllm_plugin.spec import GatedSpec

_PREFIX = "base_model.model."
_MAGNITUDE = ("lora_magnitude_vector",)
"""The tensors that DoRA adds to a LoRA's."""


@dataclass(frozen=True, slots=True)
class GatedAdapter:
    """Hold ``tensors`` by ``<module>.<part>``, float32, with the shapes of ``spec.shapes``."""

    spec: GatedSpec
    tensors: dict[str, Tensor]


def read_gated(folder: Path, base_config: Any) -> GatedAdapter:
    """Read the adapter in ``folder``, for a base model with ``base_config``.

    PEFT builds the adapter on a model without memory, so that every setting means what it means there; the
    tensors come from the file. An adapter without experts that has several ranks is padded to the largest.
    Raises AdapterError as ``load_adapter`` does, and for what the plugin cannot compute.
    """
    if needs_merging(folder):
        raise AdapterError(
            f"{folder / CONFIG_FILE}: use_dora is True, which the vLLM plugin cannot compute as an update of "
            "the base; merge it into the base weights, or use --engine hf"
        )
    config, layers = adapted_linears(folder, base_config)
    form = _form(config)
    check_numbers(folder, config)
    saved = load_file(weights_file(folder))

    def reader(name: str) -> Read:
        return lambda key: saved[f"{_PREFIX}{name}.{key}"]

    parts = {name: form.tensors(config, layer, reader(name)) for name, layer in layers.items()}
    gate = form.gate(config)
    if gate.experts == 1:
        gate = replace(gate, rank=max(1, *(len(own["down"]) for own in parts.values())), scale=1.0)
        parts = {name: _padded(own, gate.rank) for name, own in parts.items()}
    spec = GatedSpec(
        method=str(config.peft_type.value).lower(), **asdict(gate), modules=tuple(sorted(layers))
    )
    tensors = {f"{name}.{part}": tensor for name, own in parts.items() for part, tensor in own.items()}
    return GatedAdapter(spec, tensors)


def adapted_linears(folder: Path, base_config: Any) -> tuple[Any, dict[str, nn.Module]]:
    """Return the config of the adapter in ``folder`` and PEFT's layer of every linear it adapts, by name.

    No tensor is read. An adapter that needs merging passes, too. Raises AdapterError as ``load_adapter``
    does, for a setting that the plugin does not compute exactly, and for a layer that it cannot reach.
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
    _check_towers(folder, bare_model(base_config), layers)
    head = model.get_base_model().get_output_embeddings()
    form = _form(config)
    for name, layer in layers.items():
        if layer is head or not isinstance(layer, form.layer):
            kind = "the output layer" if layer is head else type(layer.get_base_layer()).__name__
            raise AdapterError(
                f"{folder}: it adapts {name} ({kind}), which the vLLM plugin cannot compute; use --engine hf"
            )
    if not layers:
        raise AdapterError(f"{folder}: it adapts no linear layer; use --engine hf")
    check_adapter(bare_model(base_config), folder)
    more = _MAGNITUDE if needs_merging(folder) else ()
    _check_names(weights_file(folder), [*form.stored, *more], layers)
    return config, layers


def _check_towers(folder: Path, base: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raise AdapterError for a layer of a vision-language model outside of its language model."""
    if (path := language_path(base)) is None:
        return
    for name in layers:
        if not name.startswith(f"{path}."):
            raise AdapterError(
                f"{weights_file(folder)}: it adapts {name}, outside of the language model {path}, which is "
                "all that the vLLM plugin reaches; use --engine hf"
            )


def _check_names(weights: Path, stored: Sequence[str], layers: Mapping[str, nn.Module]) -> None:
    """Raise AdapterError for a tensor that the plugin would leave out, such as a base weight that was
    trained with the adapter: PEFT loads it, so it changes the answers."""
    computed = {f"{_PREFIX}{name}.{part}" for name in layers for part in stored}
    for name in tensor_shapes(weights):
        if name not in computed:
            raise AdapterError(
                f"{weights}: tensor {name} is no part of an adapted linear layer, and the vLLM plugin "
                "computes nothing else; use --engine hf"
            )


def _form(config: Any) -> GatedForm:
    """Return the method's way to the plugin's form; ``refuse_inexact`` has seen that there is one."""
    entry = method_of(config)
    assert entry is not None and isinstance(entry.vllm, GatedForm)
    return entry.vllm


def _padded(parts: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    missing = rank - len(parts["down"])
    return {
        "down": nn.functional.pad(parts["down"], (0, 0, 0, missing)),
        "up": nn.functional.pad(parts["up"], (0, missing)),
    }
