"""Tensors of PEFT-like checkpoints, sorted by the linear layer that they belong to."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from cme_bench.adapters.errors import AdapterError

PREFIX = "base_model.model."
_WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|base_model\.model)\.)+")
_NAME = r"[A-Za-z_]\w*"
_KEY = re.compile(
    rf"(?P<module>.+?)\.(?P<part>lora_AB|lora_A\d*|lora_B\d*|lora_route(?:\.{_NAME})??\.fc|lora_route"
    rf"|lora_interaction_matrix)(?:\.(?P<adapter>{_NAME}))??\.weight"
)


@dataclass(slots=True)
class Layer:
    """The tensors of one linear, by part ("lora_A", "lora_B0", "lora_route", ...), and their names."""

    where: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def numbered(self, part: str) -> int:
        """Return how many tensors ``part`` has with a number after it, counted from 0 to the highest."""
        found = [re.fullmatch(rf"{part}(\d+)", name) for name in self.tensors]
        return max((int(match[1]) + 1 for match in found if match), default=0)

    def take(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Return the tensors of ``shapes``, as float32, after checking them.

        Raises AdapterError that names a tensor which is missing or of another shape.
        """
        for part, shape in shapes.items():
            tensor = self.get(part)
            if tuple(tensor.shape) != shape:
                raise AdapterError(
                    f"{self.where}.{part} has shape {list(tensor.shape)}, the other tensors ask for "
                    f"{list(shape)}"
                )
        return {part: self.tensors[part].float() for part in shapes}

    def get(self, part: str) -> Tensor:
        """Return a matrix. Raises AdapterError if it is missing or has not two dimensions."""
        if part not in self.tensors:
            raise AdapterError(f"{self.where}.{part} is missing")
        tensor = self.tensors[part]
        if tensor.ndim != 2:
            raise AdapterError(f"{self.where}.{part} has shape {list(tensor.shape)}, not two dimensions")
        return tensor


def bare_name(key: str) -> str:
    """Return a tensor's name in the base model: without what PEFT and trainers put before it."""
    found = _WRAPPERS.match(key)
    return key if found is None else key[found.end() :]


def split(key: str) -> tuple[str, str] | None:
    """Return module and part of a tensor's name; None if it is in no known layout of this kind."""
    match = _KEY.fullmatch(bare_name(key))
    if match is None:
        return None
    part = "lora_route.fc" if match["part"].endswith(".fc") else match["part"]
    return match["module"], part


def sort_layers(
    file: Path, tensors: Mapping[str, Tensor], parts: Iterable[str], layout: str
) -> dict[str, Layer]:
    """Return the layers of a checkpoint by their module in the base model.

    ``parts``: regular expressions of the parts that the layout has. Raises AdapterError for the first tensor
    that is none of them, or is there twice.
    """
    allowed = re.compile("|".join(parts))
    layers: dict[str, Layer] = defaultdict(lambda: Layer(""))
    for key, tensor in tensors.items():
        found = split(key)
        if found is None or not allowed.fullmatch(found[1]):
            raise AdapterError(f"{file}: tensor {key} is not in the layout {layout}")
        module, part = found
        layer = layers[module]
        layer.where = f"{file}: {module}"
        if part in layer.tensors:
            raise AdapterError(
                f"{file}: tensor {key} is there twice, under two adapter names (also {layer.names[part]})"
            )
        layer.tensors[part] = tensor
        layer.names[part] = key
    return dict(layers)


def one_of(file: Path, sizes: Mapping[str, tuple[int, ...]], what: str) -> tuple[int, ...]:
    """Return the value that all layers share. Raises AdapterError, naming two layers, if they differ."""
    first, *others = sizes.items()
    for module, size in others:
        if size != first[1]:
            raise AdapterError(
                f"{file}: layers differ in {what}: {first[0]} has {_plain(first[1])}, {module} {_plain(size)}"
            )
    return first[1]


def _plain(size: tuple[int, ...]) -> str:
    return ", ".join(map(str, size))
