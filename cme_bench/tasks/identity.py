"""The identity of a task file as one hash: whatever decides scores, and no prose."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from cme_bench.harness.yaml_loader import FunctionRef

_NOT_HASHED = frozenset(
    {"licence", "citation", "note", "random_baseline", "majority_baseline", "items", "cluster"}
)
"""Metadata that no score of an item depends on."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the sha256 of a resolved task file (includes merged), without any rows."""
    return hashlib.sha256(canonical(config)).hexdigest()


def suite_hash(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the sha256 of a suite, from its tasks' resolved files by name, without any rows."""
    hashes = {name: config_hash(config) for name, config in tasks.items()}
    return hashlib.sha256(orjson.dumps(hashes, option=orjson.OPT_SORT_KEYS)).hexdigest()


def canonical(config: Mapping[str, Any]) -> bytes:
    """Return the hashed part of a task file as bytes: sorted keys, prose left out."""
    kept = {k: v for k, v in config.items() if k != "metadata"}
    kept["metadata"] = {k: v for k, v in (config.get("metadata") or {}).items() if k not in _NOT_HASHED}
    options = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS  # no folder or line of a FunctionRef
    return orjson.dumps(kept, option=options | orjson.OPT_NON_STR_KEYS, default=_function_identity)


def _function_identity(value: Any) -> str:
    """Identify a function by name, and by the contents of its file where that lies beside the task file."""
    if isinstance(value, FunctionRef) and value.is_local:
        return f"{value} {hashlib.sha256(value.module_file.read_bytes()).hexdigest()}"
    return str(value)
