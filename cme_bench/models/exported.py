"""Whether a folder that ``adapters export-vllm`` wrote still holds what its config.json promises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cme_bench.util.errors import UsageError
from cme_bench.vllm_plugin.spec import DIGEST, EMBEDDED, SLOTS, SUBFOLDER


def check_exported(folder: Path, block: Mapping[str, Any] | None) -> None:
    """Raise UsageError, naming the file, if an adapter of an exported folder is missing or another one, or if
    config.json (its ``block`` of a quantisation) no longer speaks of it."""
    from cme_bench.vllm_plugin.file import ADAPTER_FILE, AdapterFileError, file_digest

    block = block or {}
    promised = {Path(SUBFOLDER) / name / ADAPTER_FILE: value for name, value in block.get(SLOTS, {}).items()}
    if block.get(EMBEDDED):
        promised[Path(SUBFOLDER) / ADAPTER_FILE] = block.get(DIGEST)
    lying = folder / SUBFOLDER / ADAPTER_FILE
    if lying.is_file() and not promised:
        raise UsageError(f"{lying}: config.json does not speak of this adapter any more; export it again")
    for place, digest in promised.items():
        try:
            found = file_digest(folder / place)
        except AdapterFileError as error:
            raise UsageError(str(error)) from None
        if digest is not None and found != digest:
            raise UsageError(f"{folder / place} is not the file that config.json names; export it again")
