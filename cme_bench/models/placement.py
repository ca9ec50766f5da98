"""Where the parts of a model lie that is larger than one device: ``--device-map``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.files import read_json

DeviceMap: TypeAlias = str | Mapping[str, str | int]
"""A way of accelerate's to fill devices, or the device of every module."""
WAYS = ("auto", "balanced", "sequential")
_HOST = ("cpu", "disk")


def read_device_map(value: str | None) -> DeviceMap | None:
    """Return what ``--device-map`` names: a way to fill devices, or the mapping in a JSON file.

    Raises UsageError for a file that holds no mapping of module names to devices that are here.
    """
    if value is None or value in WAYS:
        return value
    file = Path(value).expanduser()
    if not file.is_file():
        raise UsageError(
            f"--device-map {value}: neither {', '.join(WAYS)}{did_you_mean(value, WAYS)} nor a JSON file of "
            "module names and devices"
        )
    found = read_json(file)
    check_places(f"--device-map {file}", found)
    return found


def check_places(what: str, found: Mapping[str, Any]) -> None:
    """Raise UsageError that begins with ``what`` unless ``found`` gives modules devices that are here."""
    if not found:
        raise UsageError(f"{what}: names no module")
    for name, device in found.items():
        _check_device(what, name, device)


def _check_device(what: str, name: str, device: Any) -> None:
    import torch

    count = torch.cuda.device_count()
    index = device if isinstance(device, int) and not isinstance(device, bool) else None
    if isinstance(device, str) and device.startswith("cuda:") and device[5:].isdigit():
        index = int(device[5:])
    if device in _HOST or (index is not None and 0 <= index < count):
        return
    here = ", ".join([*map(str, range(count)), *_HOST])
    raise UsageError(f"{what}: {name!r} is to lie on {device!r}; devices here: {here}")


def check_covers(value: str | None, config: Any) -> None:
    """Raise UsageError if the mapping that ``--device-map`` names leaves a weight out, or names no module."""
    check_complete(f"--device-map {value}", read_device_map(value), config)


def check_complete(what: str, found: DeviceMap | None, config: Any) -> None:
    """Raise UsageError that begins with ``what`` if a mapping leaves a weight out, or names no module."""
    from cme_bench.adapters.meta_model import bare_model

    if not isinstance(found, Mapping) or "" in found:
        return
    model = bare_model(config)
    modules = dict(model.named_modules())
    for name in found:
        if name not in modules:
            raise UsageError(f"{what}: the model has no module {name!r}{did_you_mean(name, modules)}")
    for name, _ in model.named_parameters():
        if not any(name.startswith(f"{module}.") for module in found):
            raise UsageError(f"{what}: gives no device for {name}")
