"""Training adapters on the CME mixture: templates, mixture, tokens, batches, loss, trainer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cme_bench.training.callback import EvaluateCallback

__all__ = ["EvaluateCallback"]


def __getattr__(name: str) -> Any:
    """Import the callback, and transformers with it, when it is asked for."""
    if name != "EvaluateCallback":
        raise AttributeError(f"module 'cme_bench.training' has no attribute {name!r}")
    return import_module("cme_bench.training.callback").EvaluateCallback
