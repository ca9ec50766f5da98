"""Which safetensors files hold a model's weights, and what their headers say; no weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from cme_bench.util.errors import UsageError, first_line

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NAMED = "transformers_weights"
"""Key of config.json under which transformers looks for another file name."""
ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model", "adapter_")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a safetensors file: the file, and its shape and dtype (safetensors' name) there."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of a model folder, chosen as transformers does, sorted.

    Raises UsageError if there are none, a shard is missing, or two sets of weights lie side by side.
    """
    named = _json(folder / "config.json").get(NAMED)
    single = folder / (named if isinstance(named, str) and not named.endswith(".json") else SINGLE)
    index = folder / (named if isinstance(named, str) and named.endswith(".json") else INDEX)
    if not index.is_file():
        if single.is_file():
            return (single,)
        raise UsageError(f"{folder}: {_none(folder)}")
    shards = _shards(index)
    if named is None and single.is_file() and shards != (single,):
        raise UsageError(
            f"{folder}: {SINGLE} and {INDEX} name two sets of weights, of which engines read different ones; "
            "remove one"
        )
    for shard in shards:
        if not shard.is_file():
            lost = sum(not other.is_file() for other in shards)
            raise UsageError(
                f"{folder}: {shard.name} is missing, which {index.name} names ({lost} of {len(shards)} are)"
            )
    return shards


def stored_tensors(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """Return every tensor of some files by its name. Raises UsageError that names a damaged file, or a tensor
    that two files hold."""
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, StoredTensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118
                    if name in tensors:
                        raise UsageError(f"{file}: {name} stands in {tensors[name].file.name} as well")
                    part = stored.get_slice(name)
                    tensors[name] = StoredTensor(file, tuple(part.get_shape()), str(part.get_dtype()))
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{file}: the weights cannot be loaded ({first_line(error)})") from error
    return tensors


def adapter_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a PEFT adapter in a model's folder; none without an adapter_config.json."""
    config = folder / ADAPTER_CONFIG
    if not config.is_file():
        return ()
    weights = (f for f in folder.glob("*.safetensors") if f.name.startswith(_ADAPTER_WEIGHTS))
    return (config, *sorted(weights))


def _shards(index: Path) -> tuple[Path, ...]:
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(p, str) for p in places.values()):
        raise UsageError(f"{index}: no weight_map that names files")
    return tuple(index.parent / name for name in sorted(set(places.values())))


def _none(folder: Path) -> str:
    others = sorted(set(folder.glob("*.safetensors")) - set(adapter_files(folder)))
    if not others:
        return "no .safetensors weights (pickled .bin files are not loaded)"
    return (
        f"neither {SINGLE} nor {INDEX}, which say what the weights are (found {others[0].name}"
        f"{f' and {len(others) - 1} more' if len(others) > 1 else ''})"
    )


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise UsageError(f"{file}: broken JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file}: not a JSON object")
    return content
