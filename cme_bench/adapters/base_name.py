"""Is this the base that an adapter was trained on? Names say little: a difference is told, not refused."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath
from typing import Any

from peft import PeftConfig
from torch import nn

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import CONFIG_FILE, read_json

_SNAPSHOT = re.compile(r"models--(?P<owner>.+?)--(?P<name>[^/\\]+)[/\\]snapshots[/\\]")
_SIZES = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")


def other_base(folder: Path, config: PeftConfig, model: nn.Module, vocabulary: int | None) -> str | None:
    """Return one sentence if the adapter records a base model of another name than ``model``; else None.

    The same model lies elsewhere on every machine, mirrors rename it, and a relative path was relative to the
    trainer's folder. So only the last part of a name is compared. ``vocabulary`` is the number of token ids
    that the adapter brings, if it brings any.

    Raises AdapterError if the recorded base is a folder on this machine, and a model of another size.
    """
    recorded, actual = config.base_model_name_or_path, getattr(model, "name_or_path", None)
    if not recorded or not actual or _short(str(recorded)) == _short(str(actual)):
        return None
    sentence = (
        f"{folder / CONFIG_FILE}: the adapter was trained on {recorded}, the base model here is {actual}"
    )
    if size := _other_size(Path(str(recorded)), model.config, vocabulary):
        raise AdapterError(f"{sentence} ({size})")
    return f"{sentence}; the shapes fit"


def _short(name: str) -> str:
    """Return the model's own name behind a hub id, a path of any system, or a snapshot in the hub's cache,
    without a revision."""
    snapshot = _SNAPSHOT.search(name)
    if snapshot:
        return snapshot["name"].lower()
    if name.startswith((".", "~")) or Path(name).is_dir():
        name = str(Path(name).expanduser().resolve())
    return PureWindowsPath(name.rstrip("/\\")).name.partition("@")[0].lower()


def _other_size(recorded: Path, config: Any, vocabulary: int | None) -> str | None:
    """Name a difference in size between two configs; None for a path that need not be the trainer's."""
    file = recorded / "config.json"
    if not recorded.is_absolute() or not file.is_file():
        return None
    sizes = read_json(file)
    for key in _SIZES:
        mine = getattr(config, key, None)
        if key in sizes and sizes[key] not in (mine, vocabulary if key == "vocab_size" else mine):
            return f"{key} {sizes[key]} there, {mine} here"
    return None
