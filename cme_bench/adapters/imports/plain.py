"""Adapters that PEFT itself saved in a pickle: the same settings and tensors, in the format that is read."""

from __future__ import annotations

import json
from pathlib import Path

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import save_file

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from cme_bench.adapters.imports.layers import split
from cme_bench.adapters.imports.source import Source

NAME = "peft"
_LORA = ("lora_A", "lora_B")


def is_plain(source: Source) -> bool:
    """Return whether PEFT, or this package, reads settings and tensors as they are."""
    if source.settings.get("peft_type") not in PEFT_TYPE_TO_CONFIG_MAPPING:
        return False
    parts = {found[1] for key in source.tensors if (found := split(key))}
    return parts <= set(_LORA)


def copy_plain(source: Source, folder: Path) -> None:
    """Write the settings and tensors of ``source`` into ``folder``, unchanged.

    Raises AdapterError if the source is no pickle, for a run reads it as it is, or if it has no settings.
    """
    if not source.settings:
        raise AdapterError(f"{source.config} not found: a PEFT adapter has its settings beside its weights")
    if source.file.suffix == ".safetensors":
        method = source.settings.get("peft_type")
        raise AdapterError(f"{source.file.parent} is a {method} adapter as PEFT saves it: it needs no import")
    tensors = {name: tensor.contiguous().clone() for name, tensor in source.tensors.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(dict(source.settings), indent=2) + "\n", encoding="utf-8")
