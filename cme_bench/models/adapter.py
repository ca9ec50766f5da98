"""An adapter folder named on the command line: what it is and how it wants to be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from cme_bench.errors import UsageError
from cme_bench.models.checkpoint import hash_checkpoint

TRAINING_FILE = "cme_training.json"
"""What our trainer keeps beside an adapter: prompt format, mixture, arguments, time."""


@dataclass(frozen=True, slots=True)
class AdapterCheckpoint:
    """``hash``: sha256 over its weights and config; ``prompt_format``: the one it was trained with, if it
    says so; ``description``: method, rank, experts, targets and sizes, as ``run.json`` records them."""

    name: str
    path: Path
    hash: str
    prompt_format: str | None
    description: dict[str, Any]


def resolve_adapter(name: str, base_config: Any) -> AdapterCheckpoint:
    """The adapter in folder ``name``, described for the base model with ``base_config``.

    No weights are loaded. Raises UsageError if it is no readable adapter folder or does not fit the base.
    """
    from cme_bench.adapters.describe import describe

    path = Path(name).expanduser().resolve()
    if not path.is_dir():
        raise UsageError(f"--adapter {name}: no such folder")
    training = _training(path)
    found = describe(path, base_config)
    hash_ = hash_checkpoint(path)
    description = {
        "name": path.name,
        "path": str(path),
        "hash": hash_,
        "method": found.method,
        "rank": found.rank,
        "experts": found.experts,
        "targets": list(found.targets),
        "parameters": found.trainable_parameters,
        "percent": found.percent_of_base,
        "settings": found.settings,
        "training_seconds": training.get("seconds"),
        "tokens_trained": training.get("tokens_trained"),
    }
    return AdapterCheckpoint(path.name, path, hash_, training.get("prompt_format"), description)


def _training(path: Path) -> dict[str, Any]:
    file = path / TRAINING_FILE
    if not file.is_file():
        return {}
    try:
        content = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as err:
        raise UsageError(f"{file}: broken JSON ({err})") from err
    if not isinstance(content, dict):
        raise UsageError(f"{file}: not a JSON object")
    return content
