"""Checkpoints in the layout of TeamLoRA's authors, and of other repositories, read into ours."""

from __future__ import annotations

from pathlib import Path

from cme_bench.adapters.imports.run import Imported, import_adapter
from cme_bench.adapters.imports.teamlora import NAME
from cme_bench.adapters.methods.teamlora import TeamLoraConfig

__all__ = ["Imported", "import_adapter", "import_authors"]


def import_authors(
    source: str | Path,
    out: str | Path,
    base_model: str,
    *,
    alpha: float | None = None,
    scaling: str | float = "alpha/(k*r)",
) -> TeamLoraConfig:
    """Write an adapter folder of ours that computes exactly what a checkpoint of TeamLoRA's authors does.

    As :func:`import_adapter` with the layout "teamlora-2024-08"; returns the config that was written.
    """
    done = import_adapter(source, out, base_model, layout=NAME, alpha=alpha, scaling=scaling)
    assert isinstance(done.config, TeamLoraConfig)
    return done.config
