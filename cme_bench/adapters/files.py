"""Reading an adapter folder: its settings and the shapes of its tensors, before anything is loaded."""

from __future__ import annotations

import functools
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError, safe_open

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.field_types import misfit
from cme_bench.adapters.plugins import load_installed
from cme_bench.adapters.support import unknown_field
from cme_bench.util.errors import did_you_mean, first_line

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
WEIGHTS_SUFFIX = ".safetensors"
_PLACES = ("_indices", "_size")
"""Parts of the names of tensors that hold places in others."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises AdapterError if it is missing, unreadable or something
    else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path} not found: {path.parent} is not an adapter folder") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise AdapterError(f"{path} does not hold a JSON object")
    return content


def read_config(folder: Path) -> PeftConfig:
    """Return the settings of an adapter folder.

    Raises AdapterError, naming the file, if there is none, its ``peft_type`` is unknown, a value is out of
    range, or it has a field that this PEFT does not know and so cannot honour.
    """
    path = folder / CONFIG_FILE
    content = read_json(path)
    name = content.get("peft_type")
    if not isinstance(name, str) or not _is_known(name):
        known = [str(member.value) for member in PEFT_TYPE_TO_CONFIG_MAPPING]
        hint = did_you_mean(str(name), known) or "; the file that registers it is named with --plugin"
        raise AdapterError(f"{path}: unknown peft_type {name!r}{hint}")
    config_cls = PEFT_TYPE_TO_CONFIG_MAPPING[name]
    if not config_cls.__module__.startswith("peft."):
        names = [field.name for field in fields(config_cls)]
        for key in content:
            if key not in names:
                raise AdapterError(f"{path}: unknown field {key!r}{did_you_mean(key, names)}")
    elif (other := unknown_field(content, config_cls)) is not None:
        raise AdapterError(
            f"{path}: field {other!r} is unknown to PEFT {peft.__version__} and may change what is computed; "
            "remove it if it does not"
        )
    content.pop("runtime_config", None)  # of the process that wrote it: PEFT ignores it in a file
    if problem := misfit(content, config_cls):
        raise AdapterError(f"{path}: {problem}")
    try:
        return config_cls.from_peft_type(**content)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{path}: {first_line(error)}") from None


def _is_known(type_name: str) -> bool:
    """Return whether PEFT knows a method, or an installed package registers it."""
    known = type_name in PEFT_TYPE_TO_CONFIG_MAPPING
    return known or (type_name.isupper() and load_installed(type_name.lower()))


def weights_file(folder: Path) -> Path:
    """Return the safetensors file of an adapter folder. Raises AdapterError if it has none; pickle is
    refused."""
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return path
    pickles = sorted(file.name for file in folder.glob("adapter_model*") if file.suffix in PICKLES)
    if pickles:
        raise AdapterError(
            f"{folder / pickles[0]} is a pickle file, which can run code when read; only {WEIGHTS_FILE} is "
            "accepted (`cme-bench adapters import` reads the tensors alone, and writes one)"
        )
    raise AdapterError(f"{path} not found")


def check_values(path: Path) -> None:
    """Raise AdapterError, naming the tensor, if one in a safetensors file holds NaN or an infinity.

    All of them are read, once for each state of the file.
    """
    state = path.stat()
    if (name := _broken_tensor(path, state.st_size, state.st_mtime_ns, state.st_ino)) is not None:
        raise AdapterError(f"{path}: tensor {name} holds NaN or infinite values")


@functools.lru_cache(maxsize=64)
def _broken_tensor(path: Path, *state: int) -> str | None:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if tensor.is_floating_point() and not tensor.float().isfinite().all():
                return str(name)
    return None


def check_types(path: Path) -> None:
    """Raise AdapterError, naming the tensor, if one of numbers is stored as integers, as quantised ones are.

    Nothing in an adapter's folder says what they stand for. Methods of PEFT store places, too.
    """
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            kind = str(file.get_slice(name).get_dtype())
            if not kind.startswith(("F", "BF")) and not any(part in name for part in _PLACES):
                raise AdapterError(
                    f"{path}: tensor {name} is stored as {kind}, not as floating-point numbers"
                )


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a safetensors file, from its header. Raises AdapterError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is not a readable safetensors file: {first_line(error)}") from None
