"""cme-bench: evaluate multi-task adapters on CME, a comprehensive multi-task evaluation."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from cme_bench.version import __version__

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["__version__", "load_runs"]


def load_runs(*folders: str | PathLike[str], items: bool = False) -> pd.DataFrame:
    """Run folders as one tidy frame: a row for each task and metric; with ``items`` for each item and metric.

    Columns name the run (run, model, adapter, method, rank, experts, engine, dtype, data), the task (domain,
    dataset, task, ...) and the number (metric, value; stderr and n for tasks). Values are shares in [0, 1].
    Raises :class:`cme_bench.errors.UsageError` for a folder that is no run.
    """
    from cme_bench.reports.frame import load_frame

    return load_frame([Path(folder) for folder in folders], items=items)
