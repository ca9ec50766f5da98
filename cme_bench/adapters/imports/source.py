"""Reading a checkpoint from elsewhere: its settings, and its tensors from safetensors or from a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import CONFIG_FILE, PICKLES, WEIGHTS_FILE, read_json, tensor_shapes
from cme_bench.util.errors import first_line

PICKLED_FILE = "adapter_model.bin"


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint from elsewhere.

    Attributes:
        file: Its weights, for messages.
        config: Its adapter_config.json, for messages; there may be none.
        settings: The content of that; empty if there is none.
        tensors: By name, as they are in the file.
    """

    file: Path
    config: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read_source(path: Path) -> Source:
    """Read a folder, or one file of weights with the adapter_config.json beside it.

    A pickle is read by ``torch.load(weights_only=True)``, which runs none of its code. Raises AdapterError,
    naming the file (and tensor), if it is missing, damaged, no mapping of names to tensors, or if a folder
    holds two files of weights that differ.
    """
    folder = path if path.is_dir() else path.parent
    files = _weights(path)
    tensors = _read(files[0])
    for other in files[1:]:
        if not _equal(tensors, _read(other)):
            raise AdapterError(
                f"{folder} holds {files[0].name} and {other.name}, which differ; name one file"
            )
    _check_tensors(files[0], tensors)
    config = folder / CONFIG_FILE
    return Source(files[0], config, read_json(config) if config.is_file() else {}, tensors)


def _weights(path: Path) -> list[Path]:
    """Return the files of weights: one, or a folder's in both formats."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise AdapterError(f"{path} not found")
    found = [file for name in (WEIGHTS_FILE, PICKLED_FILE) if (file := path / name).is_file()]
    found = found or sorted(file for file in path.iterdir() if file.suffix in PICKLES)
    if not found:
        raise AdapterError(f"{path / WEIGHTS_FILE} not found, nor {PICKLED_FILE}")
    if len(found) > 1 and found[0].name != WEIGHTS_FILE:
        raise AdapterError(f"{path} holds {found[0].name} and {found[1].name}; name one file")
    return found


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix not in PICKLES:
        tensor_shapes(file)  # a damaged file gets a clear message
        return dict(load_file(file))
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle fails with anything
        raise AdapterError(
            f"{file} cannot be read as tensors alone, without running code ({_reason(error)})"
        ) from None
    if not isinstance(content, Mapping):
        raise AdapterError(f"{file} holds a {type(content).__name__}, not tensors by name")
    return dict(content)


def _reason(error: Exception) -> str:
    """Return the part of torch's message that says what is wrong; its first line gives advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("WeightsUnpickler error", "Unsupported"))]
    return (told or [first_line(error)])[0][:160]


def _check_tensors(file: Path, tensors: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise AdapterError(f"{file}: {name} is a {type(tensor).__name__}, not a tensor")
        if not tensor.is_floating_point():
            raise AdapterError(f"{file}: tensor {name} has dtype {tensor.dtype}, which is not floating point")
        if not tensor.isfinite().all():
            raise AdapterError(f"{file}: tensor {name} holds a value that is not finite")
    if not tensors:
        raise AdapterError(f"{file} holds no tensor")


def _equal(mine: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return mine.keys() == other.keys() and all(
        isinstance(other[name], Tensor) and torch.equal(tensor, other[name]) for name, tensor in mine.items()
    )
