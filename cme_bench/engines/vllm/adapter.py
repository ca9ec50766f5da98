"""A PEFT adapter folder in the form that the vLLM plugin runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.tuners.adalora.layer import SVDLinear
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from cme_bench.adapters.blueprint import adapted, bare_model
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import weights_file
from cme_bench.adapters.load import check_adapter
from cme_bench.adapters.moslora.layer import MosLoraLinear
from cme_bench.adapters.shared.layer import RoutedLinear
from cme_bench.adapters.shared.router import NORMALIZER_FLOOR
from cme_bench.errors import UsageError
from cme_bench.models.folder import own_entries
from cme_bench.vllm_plugin.file import ADAPTER_FILE, write_adapter
from cme_bench.vllm_plugin.spec import EMBEDDED, SUBFOLDER, GatedSpec

_ADAPTER = "default"
_PREFIX = "base_model.model."
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
    config = check_adapter(bare_model(base_config), folder)
    model = adapted(bare_model(base_config), config)
    layers = {
        name.removeprefix(_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    _refuse_extras(folder, config, layers)
    tensors = load_file(weights_file(folder))
    if isinstance(next(iter(layers.values())), RoutedLinear):
        spec = _routed_spec(config, tuple(sorted(layers)))
        return GatedAdapter(spec, _routed_tensors(tensors, layers, spec))
    plain = {name: _plain_parts(folder, config, name, layer, tensors) for name, layer in layers.items()}
    rank = max(len(down) for down, _ in plain.values())
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


def _refuse_extras(folder: Path, config: Any, layers: dict[str, nn.Module]) -> None:
    reason = ""
    if getattr(config, "modules_to_save", None):
        reason = f"it saves whole modules ({', '.join(sorted(config.modules_to_save))})"
    elif getattr(config, "trainable_token_indices", None):
        reason = "it trains token embeddings"
    elif getattr(config, "use_dora", False):
        reason = "it uses DoRA"
    elif getattr(config, "lora_bias", False) or getattr(config, "bias", "none") != "none":
        reason = "it trains biases"
    elif not layers:
        reason = "it is no adapter on linear layers"
    if reason:
        raise AdapterError(f"{folder}: {reason}, which the vLLM plugin cannot compute; use --engine hf")


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
    folder: Path, config: Any, name: str, layer: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """``down`` (rank, d_in) and ``up`` (d_out, rank) of ``x A B``, float32, all factors included."""

    def part(key: str) -> Tensor:
        return tensors[f"{_PREFIX}{name}.{key}"].float()

    if isinstance(layer, SVDLinear):
        scale = layer.scaling[_ADAPTER] / (config.init_r + _ADALORA_EPSILON)
        return part("lora_A") * part("lora_E") * scale, part("lora_B")
    if isinstance(layer, LoraLinear):
        return part("lora_A.weight") * layer.scaling[_ADAPTER], part("lora_B.weight")
    if isinstance(layer, MosLoraLinear):
        scale = layer.settings[_ADAPTER].scale
        return part("moslora_mixer") @ part("moslora_down") * scale, part("moslora_up")
    raise AdapterError(f"{folder}: the vLLM plugin cannot compute {name} ({type(layer).__name__})")


def export_checkpoint(base: Path, adapter: GatedAdapter, out: Path) -> None:
    """A checkpoint folder that vLLM serves with the adapter, without any flag: ``vllm serve OUT``.

    The base model's files are linked, not copied (on another file system: copied); config.json says that the
    plugin is needed. Raises UsageError if ``out`` exists and is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; choose another folder")
    (out / SUBFOLDER).mkdir(parents=True, exist_ok=True)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise UsageError(
            f"{base / 'config.json'}: the base model is quantised; the plugin needs plain weights"
        )
    for file in own_entries(base):
        if file.is_file() and file.name != "config.json":
            _link(file.resolve(), out / file.name)
    config["quantization_config"] = {**adapter.spec.to_block(), EMBEDDED: True}
    write_adapter(out / SUBFOLDER / ADAPTER_FILE, adapter.spec, adapter.tensors)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
