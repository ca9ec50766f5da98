"""The plugin's adapter file: one safetensors file that holds its spec and ``<module>.<part>`` tensors.

Parts are ``down``, ``up``, ``router``, ``interaction`` with the shapes of ``GatedSpec.shapes``, float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cme_bench.vllm_plugin.layout import Layout
from cme_bench.vllm_plugin.spec import GatedSpec

ADAPTER_FILE = "gated_adapter.safetensors"
_SPEC = "gated_spec"


class AdapterFileError(ValueError):
    """A file that is not what the engine was built for; one sentence that names file and tensor."""


def write_adapter(path: Path, spec: GatedSpec, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter file; ``tensors`` by ``<module>.<part>``. Equal adapters give equal bytes."""
    content = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
    metadata = {_SPEC: json.dumps(spec.to_block())}  # one entry: safetensors writes several in any order
    save_file(content, path, metadata=metadata)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal. Raises AdapterFileError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise AdapterFileError(f"{path} cannot be read ({error.strerror})") from None


def read_spec(path: Path) -> GatedSpec:
    """Read the spec in an adapter file. Raises AdapterFileError if there is no such file or no spec in it."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return GatedSpec.from_block(json.loads(metadata[_SPEC]))
    except (OSError, SafetensorError) as error:
        raise AdapterFileError(f"{path} is not a readable safetensors file: {error}") from None
    except (KeyError, ValueError) as error:
        raise AdapterFileError(f"{path} holds no adapter for the plugin: {error}") from None


Place = Callable[[Mapping[str, Tensor]], None]
"""Takes the local tensors of one layer: ``down`` (parts * latent, local_in), ``router`` (parts * k,
local_in), ``interaction`` (parts, k, k), and ``up`` (local_out, k r), zero where no part writes."""


def load_adapter(
    path: Path, spec: GatedSpec, layers: Iterable[tuple[Layout, Place]], *, all_modules: bool = True
) -> int:
    """Put the tensors of ``path`` into the layers of a model; the number of modules loaded.

    ``all_modules``: every module of the layers must have tensors; else the adapter is zero on the others.
    Everything is checked before the first tensor is placed. Raises AdapterFileError if the file is for
    another spec, if tensors are missing, extra or of the wrong shape, or if the model lacks a module.
    """
    found = read_spec(path)
    if found != spec:
        differs = [name for name in spec.to_block() if found.to_block()[name] != spec.to_block()[name]]
        raise AdapterFileError(
            f"{path} differs from the adapter that this engine was built for in {', '.join(differs)}"
        )
    layers = list(layers)
    held = {part.module: part for layout, _ in layers for part in layout.parts}
    missing = [module for module in spec.modules if module not in held]
    if missing:
        raise AdapterFileError(
            f"{path}: the model on vLLM has no linear layer {missing[0]} that can take an adapter (nor "
            f"{len(missing) - 1} others of {len(spec.modules)}); use --engine hf"
        )
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        _check(path, shapes, spec, layers, all_modules=all_modules)
        for layout, place in layers:
            place(_local(file, layout, spec))
    return len(held) if all_modules else len(spec.modules)


def _check(
    path: Path,
    found: Mapping[str, tuple[int, ...]],
    spec: GatedSpec,
    layers: Iterable[tuple[Layout, Place]],
    *,
    all_modules: bool,
) -> None:
    expected = {
        f"{part.module}.{name}": shape
        for layout, _ in layers
        for part in layout.parts
        if all_modules or part.module in spec.modules
        for name, shape in spec.shapes(part.d_in, part.d_out).items()
    }
    for name, shape in expected.items():
        if name not in found:
            raise AdapterFileError(f"{path}: tensor {name} is missing")
        if found[name] != shape:
            raise AdapterFileError(
                f"{path}: tensor {name} has shape {list(found[name])}, the model asks for {list(shape)}"
            )
    for name in found:
        if name not in expected:
            raise AdapterFileError(f"{path}: tensor {name} belongs to no adapted layer of the model")


def _local(file: Any, layout: Layout, spec: GatedSpec) -> dict[str, Tensor]:
    low, high = layout.inputs
    held = set(file.keys())
    local: dict[str, Tensor] = {}
    for name in ("down", "router"):
        if name == "down" or spec.routed:
            empty = torch.zeros(spec.latent if name == "down" else spec.experts, high - low)
            rows = [
                file.get_slice(tensor)[:, low:high] if (tensor := f"{part.module}.{name}") in held else empty
                for part in layout.parts
            ]
            local[name] = torch.cat(rows)
    if spec.interaction:
        empty = torch.zeros(spec.experts, spec.experts)
        names = [f"{part.module}.interaction" for part in layout.parts]
        local["interaction"] = torch.stack([file.get_tensor(n) if n in held else empty for n in names])
    local["up"] = torch.zeros(layout.d_out, spec.gated)
    for part in layout.parts:
        if f"{part.module}.up" not in held:
            continue
        up = file.get_slice(f"{part.module}.up")
        for piece in part.slices:
            local["up"][piece.start : piece.stop] = up[piece.source : piece.source + piece.stop - piece.start]
    return local
