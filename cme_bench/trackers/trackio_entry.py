"""trackio: a local database, shown by ``trackio show``; ``TRACKIO_DIR`` names its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cme_bench.trackers.entry import Entry


def open_entry(entry: Entry) -> TrackioEntry:
    """Open the entry, or the same again after a resume."""
    return TrackioEntry(entry)


class TrackioEntry:
    """A run of trackio."""

    def __init__(self, entry: Entry) -> None:
        import trackio

        self._module: Any = trackio
        self._run: Any = trackio.init(
            project=entry.project,
            name=entry.name,
            config=dict(entry.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._step = entry.last_step

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._step = step
        self._run.log(dict(values), step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import pandas as pd

        shown = self._module.Table(dataframe=pd.DataFrame([list(row) for row in rows], columns=list(columns)))
        self._run.log({name: shown}, step=self._step)

    def close(self) -> None:
        self._run.finish()
