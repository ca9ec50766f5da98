"""A sweep file: which adapters are trained together, by the options of ``cme-bench train``.

Example::

    model: smollm2
    settings: {max_steps: 300, batch_size: 48}     # of every adapter
    adapters:
      teamlora32: {method: teamlora, rank: 32}
      lora128: {method: lora, rank: 128}
    vary:                                          # every adapter with each of these
      seed: [0, 1, 2]

trains teamlora32-seed0 to lora128-seed2.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from cme_bench.harness.yaml_loader import load_yaml
from cme_bench.training.options import TrainOptions, check_options
from cme_bench.util.errors import CmeError, UsageError, did_you_mean

_KEYS = ("model", "settings", "adapters", "vary")
_UNSAFE = frozenset("/\\:\0")


def read_sweep(
    file: Path, out: Path, *, model: str | None = None, data: str | None = None, offline: bool = False
) -> list[TrainOptions]:
    """Return the options of every adapter of the sweep in ``file``; each has a folder in ``out``.

    ``model``, ``data``: of the command line; they win over the file's. Raises UsageError with file and line
    for an unknown key, field or method, a value of another type, and a name that stands twice.
    """
    loaded = load_yaml(file, root=file.resolve().parent)
    content, where = loaded.values, loaded.where
    for key in content:
        if key not in _KEYS:
            raise UsageError(f"{where[key]}: unknown key {key!r}{did_you_mean(key, _KEYS)}")
    base = model or content.get("model")
    if not isinstance(base, str):
        raise UsageError(f"{file}: name the base, 'model: NAME', or give --model")
    shared = _mapping(file, content, "settings", where)
    adapters = _mapping(file, content, "adapters", where)
    if not adapters:
        raise UsageError(f"{file}: 'adapters' names none")
    found: dict[str, TrainOptions] = {}
    for name, own in adapters.items():
        if not isinstance(own, Mapping):
            raise UsageError(f"{where[f'adapters.{name}']}: adapter {name!r} is a mapping of options")
        for suffix, varied in _varied(_mapping(file, content, "vary", where), where):
            whole = f"{name}{suffix}"
            if whole in found or not whole or whole.startswith(".") or _UNSAFE & set(whole):
                raise UsageError(
                    f"{where[f'adapters.{name}']}: {whole!r} stands twice or is no name of a folder"
                )
            given = {**shared, **own, **varied}
            place = where[f"adapters.{name}"]
            places = {  # what an alias repeats has no line of its own
                **{k: where.get(f"settings.{k}", str(file)) for k in shared},
                **{k: where.get(f"adapters.{name}.{k}", place) for k in own},
                **{k: where[f"vary.{k}"] for k in varied},
            }
            given |= {"model": base, "out": out / whole, "offline": offline}
            given |= {} if data is None else {"data": data}
            found[whole] = _options(given, places, place, name)
    return list(found.values())


def _mapping(file: Path, content: Mapping[str, Any], key: str, where: Mapping[str, str]) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{where.get(key, file)}: {key!r} is a mapping")
    return {str(name): part for name, part in value.items()}


def _varied(vary: Mapping[str, Any], where: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the end of a name and the options it stands for, of every combination."""
    for key, values in vary.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{where[f'vary.{key}']}: give a list of values of {key!r}")
    for combination in itertools.product(*vary.values()):
        chosen = dict(zip(vary, combination, strict=True))
        yield "".join(f"-{key}{value}" for key, value in chosen.items()), chosen


def _options(given: Mapping[str, Any], places: Mapping[str, str], place: str, name: str) -> TrainOptions:
    """Return the options of one adapter. UsageError, with the line, where they are none."""
    known = {f.name for f in fields(TrainOptions)}
    for key in given:
        if key not in known or (key in ("out",) and key in places):
            raise UsageError(f"{places[key]}: unknown option {key!r}{did_you_mean(key, known)}")
    if "method" not in given:
        raise UsageError(f"{place}: adapter {name!r} has no method")
    try:
        options = msgspec.convert(dict(given), TrainOptions)
    except msgspec.ValidationError as error:
        text = str(error)
        key = text.partition("`$.")[2].partition("`")[0]
        raise UsageError(f"{places.get(key, place)}: {key or name}: {text.partition(' - at')[0]}") from error
    try:
        check_options(options)
    except CmeError as error:
        named = next((k for k in places if f"--{k.replace('_', '-')}" in str(error) or k == "method"), None)
        raise UsageError(f"{places[named] if named else place}: {error}") from error
    return options
