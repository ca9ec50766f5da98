"""Weights & Biases: its server where an account is logged in; a folder with ``WANDB_MODE=offline``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cme_bench.trackers.entry import Entry


def open_entry(entry: Entry) -> WandbEntry:
    """Open the entry, or the same again after a resume."""
    return WandbEntry(entry)


class WandbEntry:
    """A run of wandb, whose files lie in the entry's folder."""

    def __init__(self, entry: Entry) -> None:
        import wandb

        self._module: Any = wandb
        self._run: Any = wandb.init(
            project=entry.project,
            name=entry.name,
            id=entry.id,
            dir=str(entry.folder),
            mode="offline" if entry.offline else None,
            config=dict(entry.config),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        table = self._module.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({name: table})

    def close(self) -> None:
        self._run.finish()
