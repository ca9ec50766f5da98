"""Whether a checkpoint's files hold what config.json says of their quantisation. Reads headers only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cme_bench.models.quantisation import method_of
from cme_bench.models.weights import StoredTensor
from cme_bench.util.errors import UsageError

Stored = Mapping[str, StoredTensor]
_STATE = re.compile(r"(?P<weight>.+\.weight)\.quant_state\.bitsandbytes__(?P<kind>\w+)")
_OF_4BIT = ("absmax", "quant_map")
_SIGNS = {
    "awq": re.compile(r"\.qweight$"),
    "gptq": re.compile(r"\.qweight$"),
    "compressed-tensors": re.compile(r"\.weight_(packed|scale|shape)$"),
}
"""By method, the name of a tensor that a quantised linear has."""


def check_packed(folder: Path, block: Mapping[str, Any], stored: Stored) -> None:
    """Raise UsageError, naming a tensor where one is at fault, if the files are not as ``block`` says.

    Such a model would be computed as another than it is called, or fail in its first layer.
    """
    line = next(_faults(method_of(block), block, stored), None)
    if line is not None:
        raise UsageError(f"{folder}: {line}")


def _faults(method: str, block: Mapping[str, Any], stored: Stored) -> Iterator[str]:
    if method == "bitsandbytes":
        yield from (_four_bits if block.get("load_in_4bit") else _eight_bits)(block, stored)
    elif method == "fp8" and not any(tensor.dtype.startswith("F8") for tensor in stored.values()):
        yield _plain(method)
    elif method == "compressed-tensors" and not block.get("config_groups"):
        return  # of a cache alone
    elif method in _SIGNS and not any(map(_SIGNS[method].search, stored)):
        yield _plain(method)


def _plain(method: str) -> str:
    return (
        f"config.json says that the weights are quantised with {method}, and none in the files is; if they "
        "are plain, take quantization_config out of it (--quantize quantises while they are loaded)"
    )


def _four_bits(block: Mapping[str, Any], stored: Stored) -> Iterator[str]:
    states = [found for found in map(_STATE.fullmatch, stored) if found]
    if not states:
        yield _plain("bitsandbytes in 4 bits")
    said = str(block.get("bnb_4bit_quant_type", "fp4"))
    for found in states:
        if found["kind"] != said:
            yield f"config.json says {said}, but {found['weight']} is {found['kind']} (bnb_4bit_quant_type)"
        for part in _OF_4BIT:
            if (name := f"{found['weight']}.{part}") not in stored:
                yield f"{name} is missing from the weights"
    whole = {found["weight"] for found in states}
    for name, tensor in stored.items():
        if name.endswith(".weight") and tensor.dtype == "U8" and name not in whole:
            yield f"{name}.quant_state is missing from the weights"


def _eight_bits(block: Mapping[str, Any], stored: Stored) -> Iterator[str]:
    scaled = [name.removesuffix("SCB") + "weight" for name in stored if name.endswith(".SCB")]
    if not scaled:
        yield _plain("bitsandbytes in 8 bits")
    for name in scaled:
        scales, weight = f"{name.removesuffix('weight')}SCB", stored.get(name)
        if weight is None:
            yield f"{name} is missing from the weights"
        elif weight.dtype != "I8":
            yield f"{name} is {weight.dtype} in the weights, but has the scales of 8 bits ({scales})"
        elif stored[scales].shape != weight.shape[:1]:
            yield f"{scales} has shape {list(stored[scales].shape)}, but {name} asks for {[weight.shape[0]]}"
    for name, tensor in stored.items():
        if name.endswith(".weight") and tensor.dtype == "I8" and name not in scaled:
            yield f"{name.removesuffix('weight')}SCB is missing from the weights"
